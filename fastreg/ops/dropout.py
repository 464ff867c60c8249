"""Dropout: fake kernels, autograd, and the eager calls.

The backward pass of dropout is dropout of the gradient with the same rng_state. Elements are numbered in the memory
order of the *forward* output, whatever the gradient's own order; features are counted, so that no order matters. What
is kept for it: 16 bytes, and the strides.
"""

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from fastreg.ops.eager import BelowAutograd, Function, needs_autograd
from fastreg.reference.dropout import check_rng_state

_OP = torch.ops.fastreg.dropout.default
_OP_ = torch.ops.fastreg.dropout_.default
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
    return torch.empty_like(input) if strides is None else input.new_empty_strided(input.shape, strides)


@register_fake("fastreg::dropout_")
def _(input, p, rng_state, index_map=None, transform=None):
    check_rng_state(rng_state, input)


@register_fake("fastreg::dropout_seeded")
def _(input, p, index_map=None, transform=None):
    return torch.empty_like(input), input.new_empty(2, dtype=torch.int64)


@register_fake("fastreg::dropout_seeded_")
def _(input, p, index_map=None, transform=None):
    return input.new_empty(2, dtype=torch.int64)


@register_fake("fastreg::feature_dropout")
def _(input, dims, p, rng_state, index_map=None, transform=None, residual=None):
    check_rng_state(rng_state, input, "feature_dropout")
    return torch.empty_like(input)


@register_fake("fastreg::feature_dropout_")
def _(input, dims, p, rng_state, index_map=None, transform=None):
    check_rng_state(rng_state, input, "feature_dropout")


@register_fake("fastreg::feature_dropout_seeded")
def _(input, dims, p, index_map=None, transform=None, residual=None):
    return torch.empty_like(input), input.new_empty(2, dtype=torch.int64)


@register_fake("fastreg::feature_dropout_seeded_")
def _(input, dims, p, index_map=None, transform=None):
    return input.new_empty(2, dtype=torch.int64)


# ---- eager calls
#
# dims=None: one draw per element, by the operators dropout*; else one per index of the leading dims dimensions, by
# feature_dropout*. The Functions take what is never differentiated as one argument: each argument costs time.


def _run(input, residual, dims, p, rng_state, index_map, transform):
    """Dropout below autograd, and the rng_state that was used; None draws one."""
    with BelowAutograd():
        if dims is None:
            if rng_state is None:
                return _SEEDED(input, p, index_map, transform)
            return _OP(input, p, rng_state, None, index_map, transform), rng_state
        if rng_state is None:
            return _FEATURE_SEEDED(input, dims, p, index_map, transform, residual)
        return _FEATURE(input, dims, p, rng_state, index_map, transform, residual), rng_state


def _run_(input, dims, p, rng_state, index_map, transform):
    """Dropout in place, below autograd. Returns the rng_state that was used."""
    with BelowAutograd():
        if dims is None:
            if rng_state is None:
                return _SEEDED_(input, p, index_map, transform)
            _OP_(input, p, rng_state, index_map, transform)
        else:
            if rng_state is None:
                return _FEATURE_SEEDED_(input, dims, p, index_map, transform)
            _FEATURE_(input, dims, p, rng_state, index_map, transform)
        return rng_state


def _keep(ctx, rng_state, dims, p, strides, index_map, transform):
    """What the backward pass needs. strides: of the forward output, where elements are numbered by them."""
    ctx.save_for_backward(rng_state)
    # Neither shift nor fill depends on the input.
    ctx.constants = dims, p, strides, index_map, transform and (transform[0], -0.0, 0.0)


def _gradient_of_input(ctx, grad_output):
    (rng_state,) = ctx.saved_tensors
    dims, p, strides, index_map, transform = ctx.constants
    if torch.is_grad_enabled():  # create_graph=True
        return _pure(grad_output, dims, p, rng_state, strides, index_map, transform)
    with BelowAutograd():
        return _pure(grad_output, dims, p, rng_state, strides, index_map, transform)


def _pure(input, dims, p, rng_state, strides, index_map, transform):
    if dims is None:
        return _OP(input, p, rng_state, strides, index_map, transform)
    return _FEATURE(input, dims, p, rng_state, index_map, transform)


class _Dropout(Function):
    @staticmethod
    def forward(ctx, input, residual, constants):
        dims, p, rng_state, transform = constants
        output, rng_state = _run(input, residual, dims, p, rng_state, None, transform)
        _keep(ctx, rng_state, dims, p, output.stride(), None, transform)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        needs_input, needs_residual, _ = ctx.needs_input_grad
        return (
            _gradient_of_input(ctx, grad_output) if needs_input else None,
            grad_output if needs_residual else None,
            None,
        )


class _DropoutInPlace(Function):
    """In place; ``states`` receives the rng_state that was used."""

    @staticmethod
    def forward(ctx, input, constants, states):
        dims, p, rng_state, index_map, transform = constants
        ctx.mark_dirty(input)
        rng_state = _run_(input, dims, p, rng_state, index_map, transform)
        _keep(ctx, rng_state, dims, p, dense_strides(input), index_map, transform)
        states.append(rng_state)
        return input

    @staticmethod
    def backward(ctx, grad_output):
        return _gradient_of_input(ctx, grad_output), None, None


def dense_strides(x):
    """The strides of empty_like(x), in whose order elements are numbered."""
    return x.stride() if x.is_contiguous() else torch.empty_like(x).stride()


def apply(
    input: Tensor,
    p: float,
    rng_state: Tensor | None,
    dims: int | None = None,
    transform: tuple[float, float, float] | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Dropout of an eager tensor, recorded by autograd. rng_state=None draws one."""
    if needs_autograd(input, residual):
        return _Dropout.apply(input, residual, (dims, p, rng_state, transform))
    return _run(input, residual, dims, p, rng_state, None, transform)[0]


def apply_(
    input: Tensor,
    p: float,
    rng_state: Tensor | None,
    dims: int | None = None,
    transform: tuple[float, float, float] | None = None,
    index_map: tuple[int, int, int] | None = None,
) -> Tensor:
    """Dropout in place of an eager tensor, recorded by autograd. Returns the rng_state that was used."""
    _refuse_unwritable(input)
    if not needs_autograd(input):
        return _run_(input, dims, p, rng_state, index_map, transform)
    states = []
    _DropoutInPlace.apply(input, (dims, p, rng_state, index_map, transform), states)
    return states[0]


def draw_state(device) -> Tensor:
    """The rng_state that dropout of a tensor on this device would draw now, drawn as dropout draws it."""
    with BelowAutograd():
        return _SEEDED(torch.empty(1, device=device), 0.5)[1]


def _refuse_unwritable(input):
    """Raise torch's own error, by an operation of torch's, where autograd forbids to modify input.

    mark_dirty would raise most of these, but after the write.
    """
    if needs_autograd(input):
        base = input._base
        forbidden = input.is_leaf or (base is not None and (base.is_leaf or _is_one_of_many_views(input)))
    else:
        forbidden = input.is_inference() and not torch.is_inference_mode_enabled()
    if forbidden:
        input.mul_(1)


def _is_one_of_many_views(view):
    return torch._C._autograd._get_creation_meta(view) != torch._C._autograd.CreationMeta.DEFAULT


# ---- autograd of the operators themselves


def _setup_dropout(ctx, inputs, output):
    _, p, rng_state, _, index_map, transform = inputs
    _keep(ctx, rng_state, None, p, output.stride(), index_map, transform)


def _setup_dropout_seeded(ctx, inputs, output):
    _, p, index_map, transform = inputs
    _keep(ctx, output[1], None, p, output[0].stride(), index_map, transform)


def _setup_feature_dropout(ctx, inputs, output):
    _, dims, p, rng_state, index_map, transform, _ = inputs
    _keep(ctx, rng_state, dims, p, None, index_map, transform)


def _setup_feature_dropout_seeded(ctx, inputs, output):
    _, dims, p, index_map, transform, _ = inputs
    _keep(ctx, output[1], dims, p, None, index_map, transform)


def _register_autograd(op, setup_context, arguments):
    """arguments: how many the operator takes. Where one is the residual, it is the last."""
    has_residual = op.startswith("feature")

    def backward(ctx, grad_output, *_):
        others = [None] * (arguments - 1)
        if has_residual and ctx.needs_input_grad[-1]:
            others[-1] = grad_output
        return _gradient_of_input(ctx, grad_output), *others

    register_autograd(f"fastreg::{op}", backward, setup_context=setup_context)


_register_autograd("dropout", _setup_dropout, 6)
_register_autograd("dropout_seeded", _setup_dropout_seeded, 4)
_register_autograd("feature_dropout", _setup_feature_dropout, 7)
_register_autograd("feature_dropout_seeded", _setup_feature_dropout_seeded, 6)


def _autograd_dropout_(input, p, rng_state, index_map=None, transform=None):
    apply_(input, p, rng_state, None, transform, index_map)


def _autograd_dropout_seeded_(input, p, index_map=None, transform=None):
    return apply_(input, p, None, None, transform, index_map)


def _autograd_feature_dropout_(input, dims, p, rng_state, index_map=None, transform=None):
    apply_(input, p, rng_state, dims, transform, index_map)


def _autograd_feature_dropout_seeded_(input, dims, p, index_map=None, transform=None):
    return apply_(input, p, None, dims, transform, index_map)


# register_autograd takes no operator that writes to an argument.
_library = Library("fastreg", "IMPL")
_library.impl("dropout_", _autograd_dropout_, "Autograd")
_library.impl("dropout_seeded_", _autograd_dropout_seeded_, "Autograd")
_library.impl("feature_dropout_", _autograd_feature_dropout_, "Autograd")
_library.impl("feature_dropout_seeded_", _autograd_feature_dropout_seeded_, "Autograd")
