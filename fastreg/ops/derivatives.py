"""Derivatives written in Python of operators written in C++."""

import torch
from torch import _C
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.library import Library

_library = Library("fastreg", "IMPL")  # its registrations last as long as it


def register_derivative(op, setup_context, backward, composed) -> None:
    """What ``torch.library.register_autograd(op, backward, setup_context=setup_context)`` does, and more: it works also
    under torch.func's transforms and in forward-mode AD.

    Args:
        op: an operator without keyword-only arguments.
        setup_context, backward: as for ``register_autograd``.
        composed: the operator as a composition of torch's, for forward-mode AD.
    """

    def below(keyset, arguments):
        with _C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & _C._after_autograd_keyset, *arguments)

    class Derivative(torch.autograd.function._SingleLevelFunction):
        @staticmethod
        def forward(ctx, keyset, *arguments):
            # Outer transforms record too, and have tangents.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                output = below(keyset, arguments)
            setup_context(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx, *gradients):
            return None, *backward(ctx, *gradients)

    def autograd(keyset, *arguments):
        if forward_ad._current_level >= 0 and any(map(_has_tangent, arguments)):
            return composed(*arguments)
        if torch.is_grad_enabled() and _C._any_requires_grad(*arguments):
            # torch.func's transforms leave this one level to us, as it does not record below autograd.
            with enable_single_level_autograd_function():
                return Derivative.apply(keyset, *arguments)
        return below(keyset, arguments)

    _library.impl(op, autograd, "Autograd", with_keyset=True)


def _has_tangent(argument):
    return isinstance(argument, torch.Tensor) and forward_ad.unpack_dual(argument).tangent is not None
