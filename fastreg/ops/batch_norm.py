"""Batch norm: fake kernels, and the operators themselves, which eager code calls as they are."""

import torch
from torch.library import register_fake

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
