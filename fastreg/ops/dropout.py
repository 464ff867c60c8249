"""Dropout: fake kernels, and the operators as one call. csrc/autograd/dropout.cpp has the derivatives."""

import torch
from torch import Tensor
from torch.library import register_fake

from fastreg.reference.dropout import check_rng_state, empty_result_like

_OP = torch.ops.fastreg.dropout.default
_OP_ = torch.ops.fastreg.dropout_.default
_DRAW = torch.ops.fastreg.draw_rng_state.default
_SEEDED = torch.ops.fastreg.dropout_seeded.default
_SEEDED_ = torch.ops.fastreg.dropout_seeded_.default
_FEATURE = torch.ops.fastreg.feature_dropout.default
_FEATURE_ = torch.ops.fastreg.feature_dropout_.default
_FEATURE_SEEDED = torch.ops.fastreg.feature_dropout_seeded.default
_FEATURE_SEEDED_ = torch.ops.fastreg.feature_dropout_seeded_.default


# ---- fake kernels: shapes, dtypes and strides of what the operators return


@register_fake("fastreg::dropout")
def _(input, p, rng_state, strides=None, index_map=None, transform=None):
    check_rng_state(rng_state, input)
    return (
        empty_result_like(input, transform=transform)
        if strides is None
        else input.new_empty_strided(input.shape, strides)
    )


@register_fake("fastreg::dropout_")
def _(input, p, rng_state, index_map=None, transform=None):
    check_rng_state(rng_state, input)


@register_fake("fastreg::dropout_seeded")
def _(input, p, index_map=None, transform=None):
    return empty_result_like(input, transform=transform), input.new_empty(2, dtype=torch.int64)


@register_fake("fastreg::dropout_seeded_")
def _(input, p, index_map=None, transform=None):
    return input.new_empty(2, dtype=torch.int64)


@register_fake("fastreg::draw_rng_state")
def _(like, generator=None):
    return like.new_empty(2, dtype=torch.int64)


@register_fake("fastreg::feature_dropout")
def _(input, dims, p, rng_state, index_map=None, transform=None, residual=None):
    check_rng_state(rng_state, input, "feature_dropout")
    return empty_result_like(input, dims, transform, residual)


@register_fake("fastreg::feature_dropout_")
def _(input, dims, p, rng_state, index_map=None, transform=None):
    check_rng_state(rng_state, input, "feature_dropout")


@register_fake("fastreg::feature_dropout_seeded")
def _(input, dims, p, index_map=None, transform=None, residual=None):
    return empty_result_like(input, dims, transform, residual), input.new_empty(2, dtype=torch.int64)


@register_fake("fastreg::feature_dropout_seeded_")
def _(input, dims, p, index_map=None, transform=None):
    return input.new_empty(2, dtype=torch.int64)


# ---- eager calls
#
# dims=None: one draw per element, by the operators dropout*; else one per index of the leading dims dimensions, by
# feature_dropout*.


def apply(
    input: Tensor,
    p: float,
    rng_state: Tensor | None,
    dims: int | None = None,
    transform: tuple[float, float, float] | None = None,
    residual: Tensor | None = None,
    index_map: tuple[int, int, int] | None = None,
) -> Tensor:
    """Dropout of an eager tensor. rng_state=None draws one."""
    if dims is None:
        if rng_state is None:
            return _SEEDED(input, p, index_map, transform)[0]
        return _OP(input, p, rng_state, None, index_map, transform)
    if rng_state is None:
        return _FEATURE_SEEDED(input, dims, p, index_map, transform, residual)[0]
    return _FEATURE(input, dims, p, rng_state, index_map, transform, residual)


def apply_(
    input: Tensor,
    p: float,
    rng_state: Tensor | None,
    dims: int | None = None,
    transform: tuple[float, float, float] | None = None,
    index_map: tuple[int, int, int] | None = None,
) -> None:
    """Dropout in place of an eager tensor. rng_state=None draws one."""
    if dims is None:
        if rng_state is None:
            _SEEDED_(input, p, index_map, transform)
        else:
            _OP_(input, p, rng_state, index_map, transform)
    elif rng_state is None:
        _FEATURE_SEEDED_(input, dims, p, index_map, transform)
    else:
        _FEATURE_(input, dims, p, rng_state, index_map, transform)


def draw_state(device, generator: torch.Generator | None = None) -> Tensor:
    """The rng_state that dropout of a tensor on this device would draw now, drawn as dropout draws it. On CUDA in a
    launch of its own."""
    return _DRAW(torch.empty(0, device=device), generator)
