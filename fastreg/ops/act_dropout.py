"""Dropout with what stands next to it: fake kernels, and the operators themselves."""

import torch
from torch.library import register_fake

from fastreg import reference
from fastreg.reference.dropout import empty_elementwise_like

given = torch.ops.fastreg.act_dropout.default
seeded = torch.ops.fastreg.act_dropout_seeded.default


# ---- fake kernels: shapes, dtypes and strides of what the operators return


def _check(input, residual, rng_state=None):
    if residual is not None and residual.shape != input.shape:
        raise RuntimeError(
            f"act_dropout: residual must have the input's shape {list(input.shape)}, got {list(residual.shape)}"
        )
    if rng_state is not None:
        reference.dropout.check_rng_state(rng_state, input, "act_dropout")


@register_fake("fastreg::act_dropout")
def _(input, bias, act, act_parameter, p, rng_state, residual, dims, strides=None):
    _check(input, residual, rng_state)
    return empty_elementwise_like(input) if strides is None else input.new_empty_strided(input.shape, strides)


@register_fake("fastreg::act_dropout_seeded")
def _(input, bias, act, act_parameter, p, residual, dims):
    _check(input, residual)
    return empty_elementwise_like(input), input.new_empty(2, dtype=torch.int64)


@register_fake("fastreg::act_dropout_backward")
def _(grad_output, input, bias, act, act_parameter, p, rng_state, dims, strides):
    _check(input, grad_output, rng_state)
    return input.new_empty_strided(input.shape, strides)
