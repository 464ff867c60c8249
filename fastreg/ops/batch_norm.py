"""Batch norm: fake kernels, second derivatives, and the operators themselves, which eager code calls as they are."""

import torch
from torch.library import register_fake

from fastreg.ops.derivatives import register_derivative
from fastreg.reference import batch_norm as reference
from fastreg.reference.batch_norm import empty_normalized_like

train = torch.ops.fastreg.batch_norm_train.default
evaluate = torch.ops.fastreg.batch_norm_eval.default
train_backward = torch.ops.fastreg.batch_norm_train_backward.default
# Of a batch in several parts: see fastreg/functional/_sync_batch_norm.py.
moments = torch.ops.fastreg.batch_norm_moments.default
merge = torch.ops.fastreg.batch_norm_merge.default
normalize = torch.ops.fastreg.batch_norm_normalize.default
grad_input = torch.ops.fastreg.batch_norm_grad_input.default


def compute_dtype(x):
    return torch.promote_types(x.dtype, torch.float32)


# ---- fake kernels: shapes, dtypes and strides of what the operators return


def check_per_channel(input, **values):
    """Raise what the operators raise where a parameter or statistic does not go with input."""
    if input.dim() < 2:
        raise ValueError(f"batch_norm: input must have at least 2 dimensions, got {input.dim()}")
    for name, value in values.items():
        if value is None:
            continue
        if value.shape != (input.shape[1],):
            raise RuntimeError(
                f"batch_norm: {name} must have shape [{input.shape[1]}], one value per channel of input, "
                f"got {list(value.shape)}"
            )
        if value.device != input.device:
            raise RuntimeError(f"batch_norm: {name} must be on {input.device}, got {value.device}")


def check_count(input, count):
    """Likewise of num_batches_tracked. One on the meta device brings tensors that are none to these kernels."""
    if count is None or (count.dtype == torch.int64 and count.numel() == 1 and count.device == input.device):
        return
    raise RuntimeError(
        f"batch_norm: num_batches_tracked must be one int64 value on {input.device}, "
        f"got {count.dtype} {list(count.shape)} on {count.device}"
    )


@register_fake("fastreg::batch_norm_train")
def _(input, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps):
    check_per_channel(input, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    check_count(input, num_batches_tracked)
    return empty_normalized_like(input), input.new_empty((3, input.shape[1]), dtype=compute_dtype(input))


@register_fake("fastreg::batch_norm_eval")
def _(input, weight, bias, running_mean, running_var, eps):
    check_per_channel(input, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    return empty_normalized_like(input)


def fake_gradients(input, weight, output_mask):
    parameter_dtype = compute_dtype(input) if weight is None else weight.dtype
    grad_input = empty_normalized_like(input) if output_mask[0] else input.new_empty(0)
    return grad_input, *(
        input.new_empty(input.shape[1], dtype=parameter_dtype) if wanted else input.new_empty(0)
        for wanted in output_mask[1:]
    )


@register_fake("fastreg::batch_norm_train_backward")
def _(grad_output, input, weight, stats, output_mask):
    return fake_gradients(input, weight, output_mask)


@register_fake("fastreg::batch_norm_eval_backward")
def _(grad_output, input, weight, running_mean, running_var, eps, output_mask):
    return fake_gradients(input, weight, output_mask)


@register_fake("fastreg::batch_norm_moments")
def _(input):
    check_per_channel(input)
    return input.new_empty(3 * input.shape[1] + 1, dtype=compute_dtype(input))


@register_fake("fastreg::batch_norm_merge")
def _(moments, running_mean, running_var, num_batches_tracked, momentum, eps):
    check_count(moments, num_batches_tracked)
    return moments.new_empty((3, moments.shape[1] // 3)), moments.new_empty((), dtype=torch.float64)


@register_fake("fastreg::batch_norm_normalize")
def _(input, weight, bias, stats):
    check_per_channel(input, weight=weight, bias=bias)
    return empty_normalized_like(input)


@register_fake("fastreg::batch_norm_grad_input")
def _(grad_output, input, weight, stats, grad_means):
    return empty_normalized_like(input)


# ---- second derivatives; csrc/autograd/batch_norm.cpp has the first


def _upcast(*tensors):
    """To the dtype that arithmetic is done in."""
    return tuple(None if t is None else t.to(compute_dtype(t)) for t in tensors)


def _downcast(gradients, likes):
    return tuple(
        None if g is None or like is None else g.to(like.dtype) for g, like in zip(gradients, likes, strict=True)
    )


def _wanted(ctx, gradients):
    """The gradients of a backward operator's outputs, without those of outputs that were not computed."""
    return _upcast(*(g if wanted else None for g, wanted in zip(gradients, ctx.output_mask, strict=True)))


def _eps(x, stats):
    """The operator knows eps only through invstd = 1 / sqrt(var + eps). Mean and variance are taken from x again, so
    that the result can itself be differentiated."""
    _, var = reference.moments(x.detach())
    return reference.per_channel(stats[2] ** -2 - var, x)


def _as_operator_returns(gradients, input, weight, output_mask):
    """Gradients of input, weight and bias in the dtypes, and with the empty tensors, of the backward operators."""
    parameter_dtype = compute_dtype(input) if weight is None else weight.dtype
    return tuple(
        g.to(dtype) if wanted else input.new_empty(0)
        for g, dtype, wanted in zip(
            gradients, (input.dtype, parameter_dtype, parameter_dtype), output_mask, strict=True
        )
    )


def _setup_train_backward(ctx, inputs, output):
    grad_output, input, weight, stats, ctx.output_mask = inputs
    ctx.save_for_backward(grad_output, input, weight, stats)


def _train_double_backward(ctx, *gradients):
    *differentiable, stats = ctx.saved_tensors
    g, x, weight = _upcast(*differentiable)
    dg, dx, dw = reference.train_double_backward(*_wanted(ctx, gradients), g, x, weight, _eps(x, stats))
    return *_downcast((dg, dx, dw), differentiable), None, None


def _setup_eval_backward(ctx, inputs, output):
    grad_output, input, weight, running_mean, running_var, ctx.eps, ctx.output_mask = inputs
    ctx.save_for_backward(grad_output, input, weight, running_mean, running_var)


def _eval_double_backward(ctx, *gradients):
    *differentiable, running_mean, running_var = ctx.saved_tensors
    g, x, weight = _upcast(*differentiable)
    statistics = _upcast(running_mean, running_var)
    d = reference.eval_double_backward(*_wanted(ctx, gradients), g, x, weight, *statistics, ctx.eps)
    return *_downcast(d, differentiable), None, None, None, None


def _composed_train_backward(grad_output, input, weight, stats, output_mask):
    g, x, w = _upcast(grad_output, input, weight)
    return _as_operator_returns(reference.train_backward(g, x, w, _eps(x, stats)), input, weight, output_mask)


def _composed_eval_backward(grad_output, input, weight, running_mean, running_var, eps, output_mask):
    arguments = _upcast(grad_output, input, weight, running_mean, running_var)
    return _as_operator_returns(reference.eval_backward(*arguments, eps), input, weight, output_mask)


register_derivative(
    torch.ops.fastreg.batch_norm_train_backward.default,
    _setup_train_backward,
    _train_double_backward,
    _composed_train_backward,
)
register_derivative(
    torch.ops.fastreg.batch_norm_eval_backward.default,
    _setup_eval_backward,
    _eval_double_backward,
    _composed_eval_backward,
)
