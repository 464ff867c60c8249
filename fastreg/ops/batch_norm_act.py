"""Batch norm with what stands next to it: fake kernels, and the operators themselves."""

import torch
from torch.library import register_fake

from fastreg import _activation, reference
from fastreg.ops.batch_norm import check_count, check_per_channel, compute_dtype, fake_gradients
from fastreg.reference.batch_norm import empty_normalized_like

train = torch.ops.fastreg.batch_norm_act_train.default
train_seeded = torch.ops.fastreg.batch_norm_act_train_seeded.default
evaluate = torch.ops.fastreg.batch_norm_act_eval.default

# The activations whose derivative has two values, which the operators tell apart by a gate.
GATED = ("relu", "relu6", "leaky_relu", "hardsigmoid")


# ---- fake kernels: shapes, dtypes and strides of what the operators return


def _output_and_gate(
    input, pre_act, pre_act_parameter, residual, act, act_parameter, act_weight, save_gate, p, rng_state
):
    if residual is not None and (residual.shape != input.shape or residual.device != input.device):
        raise RuntimeError(
            f"batch_norm_act: residual must have the input's shape {list(input.shape)} and device {input.device}, "
            f"got {list(residual.shape)} on {residual.device}"
        )
    act = _activation.parse("batch_norm_act", "act", act)
    _activation.check_weight("batch_norm_act", "act_weight", act, act_weight, input)
    if rng_state is not None:
        reference.dropout.check_rng_state(rng_state, input, "batch_norm_act")
    words = (input.numel() + 31) // 32  # gate_bytes in csrc/kernels/common/activation.h
    wanted = save_gate and residual is not None and act.name in GATED
    return empty_normalized_like(input), input.new_empty(4 * words if wanted else 0, dtype=torch.uint8)


@register_fake("fastreg::batch_norm_act_train")
def _train(input, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps, *fused):
    check_per_channel(input, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    check_count(input, num_batches_tracked)
    output, gate = _output_and_gate(input, *fused)
    return output, input.new_empty((3, input.shape[1]), dtype=compute_dtype(input)), gate


@register_fake("fastreg::batch_norm_act_train_seeded")
def _(*arguments):
    return *_train(*arguments, None), arguments[0].new_empty(2, dtype=torch.int64)


@register_fake("fastreg::batch_norm_act_eval")
def _(input, weight, bias, running_mean, running_var, eps, *fused):
    check_per_channel(input, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    return _output_and_gate(input, *fused)


@register_fake("fastreg::batch_norm_act_train_backward")
@register_fake("fastreg::batch_norm_act_eval_backward")
def _(grad_output, input, weight, *others):
    act_weight, (*parameters_too, residual_too, slope_too) = others[-4], others[-1]
    grad_residual = empty_normalized_like(input) if residual_too else input.new_empty(0)
    slope_too = slope_too and act_weight is not None
    grad_act_weight = act_weight.new_empty(act_weight.shape) if slope_too else input.new_empty(0)
    return *fake_gradients(input, weight, parameters_too), grad_residual, grad_act_weight
