"""Batch norm over a batch that is spread over the processes of a group.

Each process reduces its part of the batch to the moments of each channel. They are gathered in the order of the ranks
(one collective), merged by the rule of Chan, Golub and LeVeque in double precision on every process alike, and each
process normalises its part. Backward, two sums per channel are gathered (one collective). Gradients of weight and bias
are those of the process's own part: whatever averages or adds up all others' gradients does so with them.
"""

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fastreg import ops
from fastreg.functional._batch_count import count_batch, is_counted_by_operators
from fastreg.functional._batch_norm_checks import check_statistics_of_training

# The collectives that torch.compile has no need to rewrite, and eager code can call as well.
_collectives = torch.ops._c10d_functional


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float | None,
    eps: float,
    group: "torch.distributed.ProcessGroup",
) -> Tensor:
    """Training batch norm of this process's part of the batch, with the statistics of all parts.

    All processes of the group must call this in the same order, with as many channels each and the same dtype for
    statistics. Parts may differ in all other dimensions, and be empty.

    Args:
        input (Tensor[N, C, ...]): a tensor that ``takes_batch_norm``.
        running_mean, running_var, num_batches_tracked, weight, bias, momentum, eps: as in ``batch_norm_with_count``.
            A running statistic stays as it is where all parts together have too few values for it.
        group (ProcessGroup): this process is a member of it.

    Returns:
        Tensor[N, C, ...]: of the input's dtype, and strides as ``batch_norm`` has them.

    Raises:
        ValueError: a bad eps, one running statistic without the other, less than two dimensions.
        RuntimeError: a parameter or statistic of another shape, dtype or device, or a process that died or hangs,
            after the group's timeout.
        NotImplementedError: the second derivative is asked for.
    """
    check_statistics_of_training("sync_batch_norm", running_mean, running_var, eps)
    if num_batches_tracked is not None and not is_counted_by_operators(num_batches_tracked, input):
        momentum, num_batches_tracked = count_batch(num_batches_tracked, momentum), None
    name, size = group.group_name, group.size()
    with torch.no_grad():
        moments = _gather(ops.batch_norm.moments(input), size, name)
        stats, count = ops.batch_norm.merge(moments, running_mean, running_var, num_batches_tracked, momentum, eps)
    return _Normalize.apply(input, weight, bias, stats, count, size, name)


def _gather(values, size, name):
    """[n] of every process to [processes, n], in the order of the ranks."""
    gathered = _collectives.all_gather_into_tensor(values, size, name)
    return _collectives.wait_tensor(gathered).view(size, -1)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, bias, stats, count, size, name):
        ctx.save_for_backward(input, weight, stats, count)
        ctx.group = size, name
        ctx.bias_dtype = None if bias is None else bias.dtype
        return ops.batch_norm.normalize(input, weight, bias, stats)

    @staticmethod
    def backward(ctx, grad_output):  # pyright: ignore[reportIncompatibleMethodOverride]  torch names it otherwise
        with torch.no_grad():
            gradients = _gradients(ctx, grad_output)
        if torch.is_grad_enabled() and not is_compiling():
            gradients = _FirstDerivative.apply(grad_output, *gradients)
        return *gradients, None, None, None, None


def _gradients(ctx, grad_output):
    input, weight, stats, count = ctx.saved_tensors
    # Without a weight the gradient of one: sum of dy * x_hat.
    _, sum_dy_x_hat, sum_dy = ops.batch_norm.train_backward(grad_output, input, None, stats, [False, True, True])
    grad_input = None
    if ctx.needs_input_grad[0]:
        sums = _gather(torch.cat((sum_dy, sum_dy_x_hat)), *ctx.group).sum(0, dtype=torch.float64)
        means = (sums / count).to(stats.dtype).view(2, -1)
        grad_input = ops.batch_norm.grad_input(grad_output, input, weight, stats, means)
    grad_weight = sum_dy_x_hat.to(weight.dtype) if ctx.needs_input_grad[1] else None
    grad_bias = sum_dy.to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
    return grad_input, grad_weight, grad_bias


class _FirstDerivative(torch.autograd.Function):
    """Gradients whose own gradients nobody has worked out."""

    @staticmethod
    def forward(ctx, grad_output, *gradients):
        return tuple(None if g is None else g.view_as(g) for g in gradients)

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError("sync_batch_norm: derivatives must be of first order, got a second one")
