"""How operators written in C++ come to derivatives written in Python: by way of the dispatcher, so that whoever calls
an operator gets them, ``torch.compile``, export and torch.func's transforms as well."""

import torch
from torch import _C, Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import Function, forward_ad
from torch.library import Library


def register(library: Library, op, kernel) -> None:
    """Make kernel what the dispatcher calls where op comes to autograd.

    kernel(below, *arguments): below(*arguments) is op past autograd. The dispatcher leaves out trailing arguments that
    have their default values.
    """

    def autograd(keyset, *arguments):
        records, has_tangents = torch.is_grad_enabled(), _C._is_fwd_grad_enabled()

        def below(*arguments):
            # A Function computes with neither. But outer transforms of torch.func, which come below, have both.
            with (
                torch.set_grad_enabled(records),
                forward_ad._set_fwd_grad_enabled(has_tangents),
                _C._AutoDispatchBelowAutograd(),
            ):
                return op.redispatch(keyset & _C._after_autograd_keyset, *arguments)

        return kernel(below, *arguments)

    library.impl(op, autograd, "Autograd", with_keyset=True)


def is_recorded(*arguments) -> bool:
    """Whether autograd, or forward-mode AD, has to know what is computed of these."""
    return (torch.is_grad_enabled() and _C._any_requires_grad(*arguments)) or has_tangent(*arguments)


def record(function: type[Function], *arguments):
    """``function.apply(*arguments)`` within a kernel that was registered, where something has to be recorded; else its
    forward pass alone."""
    if not is_recorded(*arguments):
        return function.forward(*arguments)
    # torch.func's transforms leave this one level to us.
    with enable_single_level_autograd_function():
        return super(Function, function).apply(*arguments)


def has_tangent(*arguments) -> bool:
    """Forward-mode AD: whether one of the arguments is a tensor with a tangent."""
    return forward_ad._current_level >= 0 and any(
        isinstance(each, Tensor) and forward_ad.unpack_dual(each).tangent is not None for each in arguments
    )


def primal(tensor: Tensor | None) -> Tensor | None:
    """The tensor without its tangent."""
    return None if tensor is None else forward_ad.unpack_dual(tensor).primal


def with_outer_tangents():
    """In a Function's jvp, which is called without forward-mode AD: with that of torch.func's outer transforms."""
    return forward_ad._set_fwd_grad_enabled(True)


def savable(rng_state: Tensor | None) -> Tensor | None:
    """rng_state, or a copy of it that can be saved for the backward pass."""
    if rng_state is not None and rng_state.is_inference() and not torch.is_inference_mode_enabled():
        return rng_state.clone()
    return rng_state


def saved_with_running_statistics(ctx) -> tuple[Tensor | None, ...]:
    """``ctx.saved_tensors`` of batch norm in evaluation, whose statistics training updates in place."""
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(
            f"{error} (batch_norm in evaluation: if the tensor is one of its running statistics, a forward pass in "
            "training has updated it since; the gradient of what was computed before is lost then: call backward "
            "before that pass)"
        ) from error


def check_constant(op: str, **statistics: Tensor | None) -> None:
    """Raise where a running statistic would have to be differentiated."""
    for name, statistic in statistics.items():
        if has_tangent(statistic):
            raise RuntimeError(f"{op}: {name} must not have a tangent, got one")
        if torch.is_grad_enabled() and statistic is not None and statistic.requires_grad:
            raise RuntimeError(f"{op}: {name} must not require grad, got requires_grad=True")


def check_no_tangents(op: str, *arguments) -> None:
    """Raise in forward-mode AD, for which the functions compose the fused operators of others."""
    if has_tangent(*arguments):
        raise NotImplementedError(f"{op}: arguments must not have tangents, got one: use the function of this name")
