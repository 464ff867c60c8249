"""Dropout: fake kernels, autograd, and the eager calls.

The backward pass of dropout is dropout of the gradient with the same rng_state, its elements numbered in the memory
order of the *forward* output, whatever the gradient's own order. What is kept for it: 16 bytes and the strides.
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


def dense_strides(x):
    """The strides of empty_like(x), in whose order elements are numbered."""
    return x.stride() if x.is_contiguous() else torch.empty_like(x).stride()


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


# ---- eager calls


def _mask_gradient(ctx, grad_output):
    (rng_state,) = ctx.saved_tensors
    transform = ctx.transform and (ctx.transform[0], -0.0, 0.0)
    arguments = grad_output, ctx.p, rng_state, ctx.strides, ctx.index_map, transform
    if torch.is_grad_enabled():  # create_graph=True
        return _OP(*arguments)
    with BelowAutograd():
        return _OP(*arguments)


class _Dropout(Function):
    @staticmethod
    def forward(ctx, input, p, rng_state):
        with BelowAutograd():
            if rng_state is None:
                output, rng_state = _SEEDED(input, p)
            else:
                output = _OP(input, p, rng_state)
        ctx.save_for_backward(rng_state)
        ctx.p, ctx.strides, ctx.index_map, ctx.transform = p, output.stride(), None, None
        return output

    @staticmethod
    def backward(ctx, grad_output):
        return _mask_gradient(ctx, grad_output), None, None


class _DropoutInPlace(Function):
    """In place; ``states`` receives the rng_state that was used."""

    @staticmethod
    def forward(ctx, input, p, rng_state, index_map, transform, states):
        ctx.mark_dirty(input)
        ctx.p, ctx.strides, ctx.index_map, ctx.transform = p, dense_strides(input), index_map, transform
        rng_state = _below_autograd_(input, p, rng_state, index_map, transform)
        ctx.save_for_backward(rng_state)
        states.append(rng_state)
        return input

    @staticmethod
    def backward(ctx, grad_output):
        return _mask_gradient(ctx, grad_output), None, None, None, None, None


def _below_autograd_(input, p, rng_state, index_map, transform):
    """Dropout in place. Returns the rng_state that was used."""
    with BelowAutograd():
        if rng_state is None:
            return _SEEDED_(input, p, index_map, transform)
        _OP_(input, p, rng_state, index_map, transform)
        return rng_state


def apply(input: Tensor, p: float, rng_state: Tensor | None) -> Tensor:
    """Dropout of an eager tensor, recorded by autograd. rng_state=None draws one."""
    if needs_autograd(input):
        return _Dropout.apply(input, p, rng_state)
    with BelowAutograd():
        return _SEEDED(input, p)[0] if rng_state is None else _OP(input, p, rng_state)


def apply_(input: Tensor, p: float, rng_state: Tensor | None, index_map=None, transform=None) -> Tensor:
    """Dropout in place of an eager tensor, recorded by autograd. Returns the rng_state that was used."""
    _refuse_unwritable(input)
    if not needs_autograd(input):
        return _below_autograd_(input, p, rng_state, index_map, transform)
    states = []
    _DropoutInPlace.apply(input, p, rng_state, index_map, transform, states)
    return states[0]


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


def _save(ctx, p, rng_state, output, index_map, transform):
    ctx.save_for_backward(rng_state)
    ctx.p, ctx.strides, ctx.index_map, ctx.transform = p, output.stride(), index_map, transform


def _setup_dropout(ctx, inputs, output):
    _, p, rng_state, _, index_map, transform = inputs
    _save(ctx, p, rng_state, output, index_map, transform)


def _setup_dropout_seeded(ctx, inputs, output):
    _, p, index_map, transform = inputs
    _save(ctx, p, output[1], output[0], index_map, transform)


register_autograd(
    "fastreg::dropout",
    lambda ctx, grad: (_mask_gradient(ctx, grad), None, None, None, None, None),
    setup_context=_setup_dropout,
)
register_autograd(
    "fastreg::dropout_seeded",
    lambda ctx, grad, _: (_mask_gradient(ctx, grad), None, None, None),
    setup_context=_setup_dropout_seeded,
)


def _autograd_dropout_(input, p, rng_state, index_map=None, transform=None):
    apply_(input, p, rng_state, index_map, transform)


def _autograd_dropout_seeded_(input, p, index_map=None, transform=None):
    return apply_(input, p, None, index_map, transform)


# register_autograd takes no operator that writes to an argument.
_library = Library("fastreg", "IMPL")
_library.impl("dropout_", _autograd_dropout_, "Autograd")
_library.impl("dropout_seeded_", _autograd_dropout_seeded_, "Autograd")
