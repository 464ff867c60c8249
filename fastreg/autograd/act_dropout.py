"""The derivatives of dropout with what stands next to it: the first, of the operators, and the second, of their
backward operator.

y = dropout(act(x + bias)) + residual. What is kept is x, the bias, and 16 bytes of random state; with the identity,
whose derivative is dropout's own, the state alone.
"""

from typing import NamedTuple

import torch
from torch.autograd import Function
from torch.library import register_autograd

from fastreg import reference
from fastreg.autograd.double_backward import activation, differentiate, inputs_of, setup_context
from fastreg.autograd.dropout import Kind, linear_part

_OPS = torch.ops.fastreg


class Settings(NamedTuple):
    """What the operators are told beside tensors."""

    act: str
    act_parameter: float
    p: float
    dims: int | None


class ActDropout(Function):
    """compute(rng_state) is the output or, where it draws its rng_state, (output, rng_state); of the other arguments,
    as an operator has them."""

    @staticmethod
    def forward(compute, settings, draws, input, bias, residual, rng_state):
        return compute(rng_state)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.settings, draws, input, bias, _, rng_state = inputs
        if draws:
            output, rng_state = output
            ctx.mark_non_differentiable(rng_state)
        ctx.strides = output.stride()
        *_, input_too, bias_too, _, _ = ctx.needs_input_grad
        if not (input_too or bias_too):
            ctx.save_for_backward(None, None, None)
        elif ctx.settings.act == "identity":
            ctx.save_for_backward(rng_state, None, None)
        else:
            ctx.save_for_backward(rng_state, input, bias)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_output, *_):
        *_, input_too, bias_too, residual_too, _ = ctx.needs_input_grad
        rng_state, input, bias = ctx.saved_tensors
        if grad_output is None:
            return (None,) * 7
        grad_input = grad_bias = None
        if input_too or bias_too:
            grad_input = _grad_input(ctx.settings, ctx.strides, grad_output, rng_state, input, bias)
        if bias_too:
            grad_bias = grad_input.flatten(0, -2).sum(0) if grad_input.dim() > 1 else grad_input
        return None, None, None, grad_input, grad_bias, grad_output if residual_too else None, None


def _grad_input(settings, strides, grad_output, rng_state, input, bias):
    act, act_parameter, p, dims = settings
    if input is not None:
        return _OPS.act_dropout_backward(grad_output, input, bias, act, act_parameter, p, rng_state, dims, strides)
    return linear_part(Kind(_OPS, p, dims), grad_output, rng_state, strides) if p else grad_output


# ---- second derivatives: the backward operator is differentiated, over C++ nodes as well


def _double_backward(ctx, gradient):
    grad_output, input, bias, act, act_parameter, p, rng_state, dims, strides = inputs_of(ctx)

    def definition(x, bias):
        return reference.fused.act_dropout(
            x,
            bias,
            activation(act, act_parameter),
            p,
            rng_state,
            dims=dims,
            strides=strides,
        )

    dg, dx, dbias = differentiate(definition, (input, bias), grad_output, (gradient, None))
    return dg, dx, dbias, *[None] * 6


register_autograd("fastreg::act_dropout_backward", _double_backward, setup_context=setup_context)
