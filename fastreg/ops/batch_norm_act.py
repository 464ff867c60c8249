"""Batch norm with what stands next to it: fake kernels, second derivatives, and the operators themselves."""

from functools import partial

import torch
from torch.library import register_autograd, register_fake

from fastreg import _activation, reference
from fastreg.ops.batch_norm import check_count, check_per_channel, compute_dtype, fake_gradients
from fastreg.ops.double_backward import activation, differentiate, inputs_of, setup_context, upcast
from fastreg.reference.batch_norm import empty_normalized_like

train = torch.ops.fastreg.batch_norm_act_train.default
train_seeded = torch.ops.fastreg.batch_norm_act_train_seeded.default
evaluate = torch.ops.fastreg.batch_norm_act_eval.default

# The activations whose derivative has two values, which the operators tell apart by a gate.
_GATED = ("relu", "relu6", "leaky_relu", "hardsigmoid")


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
    wanted = save_gate and residual is not None and act.name in _GATED
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


# ---- second derivatives; csrc/autograd/batch_norm_act.cpp has the first


def _double_backward(backward, ctx, *gradients):
    inputs = inputs_of(ctx)
    grad_output, input, weight, bias, *statistics = inputs[:-10]
    pre_act, pre_act_parameter, residual, gate, act, act_parameter, act_weight, p, rng_state, output_mask = inputs[-10:]

    before, after = activation(pre_act, pre_act_parameter), activation(act, act_parameter)
    if gate is not None:  # the operator tells what it means: the gradient of the residual where that of the output is 1
        with torch.no_grad():
            mask = (False, False, False, True, False)
            slope = backward(torch.ones_like(grad_output), *inputs[1:-3], 0.0, None, mask)[3]

        def after(z, _):
            return z * slope

    if len(statistics) == 3:
        *statistics, eps = statistics
        statistics = [upcast(statistic) for statistic in statistics]
    else:
        # The operator knows eps only through invstd = 1 / sqrt(var + eps). Mean and variance are taken from the input
        # again, so that the result can itself be differentiated.
        with torch.no_grad():
            x = before(upcast(input))
            eps = reference.batch_norm.per_channel(statistics[0][2] ** -2 - reference.batch_norm.moments(x)[1], x)
        statistics = None

    def definition(x, weight, bias, residual, act_weight):
        return reference.fused.batch_norm_act(
            x,
            weight,
            bias,
            eps,
            before,
            lambda z: after(z, act_weight),
            statistics=statistics,
            residual=residual,
            p=p,
            rng_state=rng_state,
            strides=empty_normalized_like(input).stride(),
        )

    output_mask = (*output_mask[:4], output_mask[4] and act_weight is not None)
    # What the operator was not given has a gradient all the same, which does not depend on it: any value does.
    zeros = upcast(input.detach().new_zeros(input.shape[1]))
    given = (input, weight, bias, residual, act_weight)
    stand_ins = (None, zeros + 1, zeros, torch.zeros_like(input), None)
    operands = [
        stand_in if tensor is None and wanted else tensor
        for tensor, stand_in, wanted in zip(given, stand_ins, output_mask, strict=True)
    ]
    gradients = [gradient if wanted else None for gradient, wanted in zip(gradients, output_mask, strict=True)]
    dg, *found = differentiate(definition, operands, grad_output, gradients)
    dx, dweight, dbias, dresidual, dslope = (None if t is None else d for t, d in zip(given, found, strict=True))
    rest = len(inputs) - 4 - 10
    return dg, dx, dweight, dbias, *[None] * rest, None, None, dresidual, *[None] * 3, dslope, *[None] * 3


for _name in ("batch_norm_act_train_backward", "batch_norm_act_eval_backward"):
    register_autograd(
        f"fastreg::{_name}",
        partial(_double_backward, getattr(torch.ops.fastreg, _name)),
        setup_context=setup_context,
    )
