"""Batch norm over every dimension but the channel's, dimension 1: forward, backward, and backward of the backward.

All arithmetic is in the dtype of the arguments; the tests pass float64. Means are called E below, x_hat is the
normalised input, g the gradient of the output.
"""

import torch
from torch._prims_common import suggest_memory_format


def normalized_format(x):
    """The memory format of what torch's batch norm returns on x's device, and fastreg's with it: see
    csrc/operators/layout.h."""
    if not x.is_cuda:
        formats = {4: (torch.channels_last,), 5: (torch.channels_last_3d,)}.get(x.dim(), ())
        for memory_format in (torch.contiguous_format, *formats):
            if x.is_contiguous(memory_format=memory_format):
                return memory_format
    return suggest_memory_format(x)


def empty_normalized_like(x):
    """An uninitialised result of the batch norm of x."""
    return torch.empty_like(x, memory_format=normalized_format(x))


def per_channel(value, like):
    """A [C] tensor in a shape that broadcasts against ``like``, [N, C, ...]. None stays None."""
    return None if value is None else value.reshape([1, -1] + [1] * (like.dim() - 2))


def reduced_dims(x):
    return [d for d in range(x.dim()) if d != 1]


def channel_sum(x):
    """[N, C, ...] to [C]."""
    return x.sum(reduced_dims(x))


def channel_mean(x):
    """[N, C, ...] to [1, C, 1, ...]."""
    return x.mean(reduced_dims(x), keepdim=True)


def moments(x):
    """Mean and biased variance of each channel, in two passes: two [C] tensors."""
    mean = channel_mean(x)
    return mean.flatten(), channel_mean((x - mean) ** 2).flatten()


def normalize(x, mean, var, eps):
    """x_hat, and 1 / sqrt(var + eps) in a shape that broadcasts."""
    invstd = torch.rsqrt(per_channel(var, x) + eps)
    return (x - per_channel(mean, x)) * invstd, invstd


def forward(x, weight, bias, mean, var, eps):
    """y = x_hat * weight + bias, with the given statistics: those of the batch, or running ones."""
    y, _ = normalize(x, mean, var, eps)
    y = y if weight is None else y * per_channel(weight, x)
    return y if bias is None else y + per_channel(bias, x)


def update_running(running_mean, running_var, mean, var, count, momentum):
    """The running statistics after a batch with these moments and ``count`` values per channel: (mean, var).

    The new value is (1 - momentum) * old + momentum * batch; running_var follows the unbiased variance.
    """
    unbiased = var * (count / (count - 1))
    return running_mean.lerp(mean, momentum), running_var.lerp(unbiased, momentum)


def train_backward(g, x, weight, eps):
    """Gradients of :func:`forward` with the batch's own statistics: (dx, dweight, dbias).

    dx = weight * invstd * (g - E[g] - x_hat * E[g * x_hat])
    """
    mean, var = moments(x)
    x_hat, invstd = normalize(x, mean, var, eps)
    scale = invstd if weight is None else invstd * per_channel(weight, x)
    dx = scale * (g - channel_mean(g) - x_hat * channel_mean(g * x_hat))
    return dx, channel_sum(g * x_hat), channel_sum(g)


def train_double_backward(a, b, c, g, x, weight, eps):
    """Gradients of :func:`train_backward`: (dg, dx, dweight).

    a, b, c: the gradients of its outputs dx, dweight, dbias; None stands for zeros.
    """
    mean, var = moments(x)
    x_hat, invstd = normalize(x, mean, var, eps)
    w = 1.0 if weight is None else per_channel(weight, x)
    mean_gx = channel_mean(g * x_hat)

    def centred(v):
        """v - E[v] - x_hat * E[v * x_hat]: the gradient of x_hat, short of a factor invstd."""
        return v - channel_mean(v) - x_hat * channel_mean(v * x_hat)

    dg = torch.zeros_like(g)
    d_x_hat = torch.zeros_like(x)  # what the output depends on through x_hat
    d_invstd = torch.zeros_like(x)  # and through invstd = invstd(x)
    d_weight = None if weight is None else torch.zeros_like(weight)
    if a is not None:
        dg = dg + w * invstd * centred(a)
        d_x_hat = d_x_hat - w * invstd * (a * mean_gx + g * channel_mean(a * x_hat))
        # the slope of invstd is -invstd**2 * x_hat / count
        d_invstd = -w * invstd**2 * x_hat * channel_mean(a * centred(g))
        if weight is not None:
            d_weight = channel_sum(a * invstd * centred(g))
    if b is not None:
        dg = dg + per_channel(b, x) * x_hat
        d_x_hat = d_x_hat + per_channel(b, x) * g
    if c is not None:
        dg = dg + per_channel(c, x)
    return dg, invstd * centred(d_x_hat) + d_invstd, d_weight


def eval_backward(g, x, weight, running_mean, running_var, eps):
    """Gradients of :func:`forward` with constant statistics: (dx, dweight, dbias)."""
    x_hat, invstd = normalize(x, running_mean, running_var, eps)
    dx = g * invstd if weight is None else g * invstd * per_channel(weight, x)
    return dx, channel_sum(g * x_hat), channel_sum(g)


def eval_double_backward(a, b, c, g, x, weight, running_mean, running_var, eps):
    """Gradients of :func:`eval_backward`: (dg, dx, dweight). Arguments as in :func:`train_double_backward`."""
    x_hat, invstd = normalize(x, running_mean, running_var, eps)
    w = 1.0 if weight is None else per_channel(weight, x)
    dg, dx = torch.zeros_like(g), torch.zeros_like(x)
    d_weight = None if weight is None else torch.zeros_like(weight)
    if a is not None:
        dg = dg + a * w * invstd
        if weight is not None:
            d_weight = channel_sum(a * g * invstd)
    if b is not None:
        dg = dg + per_channel(b, x) * x_hat
        dx = per_channel(b, x) * g * invstd
    if c is not None:
        dg = dg + per_channel(c, x)
    return dg, dx, d_weight
