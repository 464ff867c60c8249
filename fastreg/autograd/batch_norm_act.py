"""The derivatives of batch norm with what stands next to it: the first, of the operators, and the second, of their
backward operators.

y = dropout(act(batch_norm(pre_act(x)) + residual)). What is kept beside x, the statistics and the parameters: 16 bytes
of random state where there is a dropout; and where the activation has a derivative to be told, with a residual, the
gate (the derivative in a bit per element) or else the residual. Without a residual the backward pass computes the
activation's input again.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch.autograd import Function
from torch.library import register_autograd

from fastreg import reference
from fastreg.autograd.batch_norm import wanted_of
from fastreg.autograd.dispatch import saved_with_running_statistics
from fastreg.autograd.double_backward import activation, differentiate, inputs_of, setup_context, upcast
from fastreg.ops.batch_norm_act import GATED
from fastreg.reference.batch_norm import empty_normalized_like

_OPS = torch.ops.fastreg


class Settings(NamedTuple):
    """What the operators are told beside tensors."""

    pre_act: str
    pre_act_parameter: float
    act: str
    act_parameter: float
    p: float
    eps: float | None  # of evaluation, whose statistics are running_mean and running_var


def keeps_gate(settings, residual) -> bool:
    return residual is not None and settings.act in GATED


class BatchNormAct(Function):
    """compute(rng_state) is (output, stats, gate, rng_state) as an operator has them of the other arguments: stats
    only where it computed them, rng_state only where it drew it, else None."""

    @staticmethod
    def forward(compute, settings, running_mean, running_var, rng_state, input, weight, bias, residual, act_weight):
        return compute(rng_state)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, settings, running_mean, running_var, rng_state, input, weight, bias, residual, act_weight = inputs
        _, stats, gate, drawn = output
        ctx.mark_non_differentiable(*(each for each in output[1:] if each is not None))
        gated = keeps_gate(settings, residual)
        needs_z = not gated and settings.act != "identity"
        ctx.settings = settings
        ctx.save_for_backward(
            input,
            weight,
            bias if needs_z else None,
            *((running_mean, running_var) if stats is None else (stats, None)),
            residual if needs_z else None,
            gate if gated else None,
            act_weight,
            rng_state if drawn is None else drawn,
        )
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_output, *_):
        if grad_output is None:
            return (None,) * 10
        mask = list(ctx.needs_input_grad[5:])
        pre_act, pre_act_parameter, act, act_parameter, p, eps = ctx.settings
        is_residuals = mask[3] and act == "identity" and not p  # the gradient of the output
        if is_residuals:
            mask[3] = False
        gradients = [None] * 5
        if any(mask):
            kept = ctx.saved_tensors if eps is None else saved_with_running_statistics(ctx)
            input, weight, bias, statistic, running_var, residual, gate, act_weight, rng_state = kept
            before = (grad_output, input, weight, bias)
            after = (pre_act, pre_act_parameter, residual, gate, act, act_parameter, act_weight, p, rng_state, mask)
            if eps is None:
                gradients = _OPS.batch_norm_act_train_backward(*before, statistic, *after)
            else:
                gradients = _OPS.batch_norm_act_eval_backward(*before, statistic, running_var, eps, *after)
            gradients = wanted_of(gradients, mask)
        if is_residuals:
            gradients[3] = grad_output
        return *[None] * 5, *gradients


# ---- second derivatives: the backward operators are differentiated, over C++ nodes as well


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
