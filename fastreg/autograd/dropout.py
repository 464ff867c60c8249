"""The derivative of dropout.

y = keep ? scale * x + shift : fill, for features with a residual in place of shift and fill; keep is a function of 16
bytes of random state, which are all that is kept. dx = keep ? scale * dy : 0 is dropout again: of the gradient, with
the same rng_state. So are all higher derivatives.

Elements are numbered in the memory order of the *forward* output, whatever the gradient's own order. Features are
counted, so that no order matters.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastreg import reference
from fastreg.autograd.dispatch import savable, with_outer_tangents


@dataclass(frozen=True)  # torch.func takes named tuples apart
class Kind:
    """Which draws decide, and what becomes of kept elements: as in ``fastreg.reference.dropout``.

    on: what has the operators ``dropout`` and ``feature_dropout``, differentiable, by which gradients are computed.
    dims: of feature dropout, None where elements are dropped.
    strides: those in whose memory order elements are numbered. Default: the output's.
    """

    on: Any
    p: float
    dims: int | None = None
    index_map: tuple[int, int, int] | None = None
    transform: tuple[float, float, float] | None = None
    strides: tuple[int, ...] | None = None


def linear_part(kind: Kind, x: Tensor, rng_state: Tensor, strides, residual: Tensor | None = None) -> Tensor:
    """Dropout of a gradient or a tangent: neither shift nor fill depends on the input."""
    transform = None if kind.transform is None else (kind.transform[0], -0.0, 0.0)
    if kind.dims is None:
        return kind.on.dropout(x, kind.p, rng_state, strides, kind.index_map, transform)
    return kind.on.feature_dropout(x, kind.dims, kind.p, rng_state, kind.index_map, transform, residual)


class Dropout(Function):
    """compute(input, residual, rng_state) is the output or, where it draws its rng_state, (output, rng_state)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(compute, kind, input, residual, rng_state):
        return compute(input, residual, rng_state)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.kind, _, _, rng_state = inputs
        ctx.draws = rng_state is None
        if ctx.draws:
            output, rng_state = output
            ctx.mark_non_differentiable(rng_state)
        ctx.strides = output.stride() if ctx.kind.strides is None else ctx.kind.strides
        ctx.save_for_backward(rng_state)
        ctx.save_for_forward(rng_state)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_output, *_):
        (rng_state,) = ctx.saved_tensors
        *_, input_too, residual_too, _ = ctx.needs_input_grad
        grad_input = None
        if input_too and grad_output is not None:
            grad_input = linear_part(ctx.kind, grad_output, rng_state, ctx.strides)
        return None, None, grad_input, grad_output if residual_too else None, None

    @staticmethod
    def jvp(ctx, _, __, of_input, of_residual, *___):
        (rng_state,) = ctx.saved_tensors
        with with_outer_tangents():
            if of_input is None:
                tangent = of_residual.clone()
            else:
                tangent = linear_part(ctx.kind, of_input, rng_state, ctx.strides, of_residual)
        return (tangent, None) if ctx.draws else tangent


# ---- over the reference


def dropout(input, p, rng_state, strides=None, index_map=None, transform=None) -> Tensor:
    """``fastreg.reference.dropout.dropout``, of which rng_state is kept."""
    strides = torch.empty_like(input).stride() if strides is None else strides

    def compute(x, residual, rng_state):
        return reference.dropout.dropout(x, p, rng_state, strides, index_map, transform)

    kind = Kind(_REFERENCE, p, None, index_map, transform, strides)
    return Dropout.apply(compute, kind, input, None, savable(rng_state))


def feature_dropout(input, dims, p, rng_state, index_map=None, transform=None, residual=None) -> Tensor:
    """``fastreg.reference.dropout.feature_dropout``, of which rng_state is kept."""

    def compute(x, residual, rng_state):
        return reference.dropout.feature_dropout(x, dims, p, rng_state, index_map, transform, residual)

    kind = Kind(_REFERENCE, p, dims, index_map, transform)
    return Dropout.apply(compute, kind, input, residual, savable(rng_state))


_REFERENCE = SimpleNamespace(dropout=dropout, feature_dropout=feature_dropout)
