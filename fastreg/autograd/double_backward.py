"""Second derivatives of operators that have none of their own: by torch, of the operator's definition."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreg import _activation
from fastreg.ops.batch_norm import compute_dtype


def setup_context(ctx, inputs, output):
    """Keep all inputs of an operator. For ``torch.library.register_autograd``."""
    ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in inputs))
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]


def inputs_of(ctx) -> list:
    """What :func:`setup_context` kept."""
    return [other if kept is None else kept for kept, other in zip(ctx.saved_tensors, ctx.others, strict=True)]


def upcast(tensor: Tensor | None) -> Tensor | None:
    """To the dtype that arithmetic is done in."""
    return None if tensor is None else tensor.to(compute_dtype(tensor))


def activation(name: str, parameter: float) -> Callable[..., Tensor]:
    """An activation, of a tensor and the learned slope where there is one, by torch operations that can be
    differentiated twice, which torch's own hardsigmoid cannot."""
    if name == "hardsigmoid":
        return lambda z, weight=None: F.relu6(z + 3.0) / 6.0
    return lambda z, weight=None: _activation.apply(_activation.Activation(name, parameter), z, weight)


def differentiate(definition, operands, grad_output, gradients):
    """The gradients of (grad_output, *operands) where an operator computed from them those of the operands.

    Args:
        definition: operands, in the dtype that arithmetic is done in, to the output whose gradient grad_output is.
        operands: tensors, and None where one is not there.
        gradients: of each of the operator's results; None where it did not compute that one.

    Returns:
        list: a tensor or None for grad_output and each operand, of their dtypes. Can be differentiated again, where
        that is asked for.
    """
    originals = (grad_output, *operands)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        g, *xs = (_variable(upcast(t), create_graph) for t in originals)
        wanted = [(x, upcast(d)) for x, d in zip(xs, gradients, strict=True) if d is not None]
        first = torch.autograd.grad(definition(*xs), [x for x, _ in wanted], g, create_graph=True)
        present = [x for x in (g, *xs) if x is not None]
        second = torch.autograd.grad(
            first, present, [d for _, d in wanted], create_graph=create_graph, allow_unused=True
        )
    found = iter(second)
    return [None if t is None or (d := next(found)) is None else d.to(t.dtype) for t in originals]


def _variable(tensor, connected):
    """What can be differentiated by: connected with what the tensor was computed from, or not."""
    if tensor is None:
        return None
    if connected and tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_()
