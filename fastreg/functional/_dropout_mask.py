"""The mask of a random state."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fastreg import ops, reference
from fastreg._routing import device_type, has_operators
from fastreg.functional._dropout_calls import check_p


def dropout_mask(
    shape: Sequence[int],
    p: float,
    rng_state: Tensor,
    *,
    dims: int | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The mask that dropout with this random state has for a tensor of this shape.

    Args:
        shape (sequence of int): of the tensor.
        p (float): probability of an element to be dropped, in [0, 1].
        rng_state (Tensor): int64[2], as the functions take it.
        dims (int, optional): one draw per index of the first ``dims`` dimensions: 1 as in :func:`drop_path`, 2 as in
            :func:`feature_alpha_dropout` and in ``dropout1d`` to ``dropout3d`` of inputs with a dimension of samples
            (1 without). Default: one draw per element, as in :func:`dropout` and :func:`alpha_dropout`.
        strides (sequence of int, optional): of a dense tensor, in whose memory order its elements are numbered: those
            of ``torch.empty_like(input)``, such as ``input.stride()`` of a channels-last input. Without dims only.
            Default: those of a contiguous tensor.

    Returns:
        Tensor: bool, of the given shape, True where an element is kept; on the device of rng_state. With dims it is an
        expanded view of one value per draw.

    Raises:
        ValueError: p is not in [0, 1], rng_state not of shape [2], dims not in [0, len(shape)], strides not those of a
            dense tensor of the shape, or both given.
        TypeError: rng_state is not an int64 tensor.
    """
    check_p("dropout_mask", p)
    reference.dropout.check_rng_state(rng_state, rng_state, "dropout_mask")
    shape = tuple(shape)
    if dims is None:
        kept = _kept(math.prod(shape), p, rng_state)
        if strides is None:
            return kept.view(shape)
        if not _is_dense(shape, strides):
            raise ValueError(
                f"dropout_mask: strides must be those of a dense tensor of shape {list(shape)}, got {list(strides)}"
            )
        return kept.as_strided(shape, strides)
    if not 0 <= dims <= len(shape):
        raise ValueError(f"dropout_mask: dims must lie in [0, {len(shape)}], got {dims}")
    if strides is not None:
        raise ValueError(f"dropout_mask: strides must be None where dims is given, got {list(strides)}")
    leading = shape[:dims]
    return _kept(math.prod(leading), p, rng_state).view(*leading, *[1] * (len(shape) - dims)).expand(shape)


def _kept(numel, p, rng_state):
    """Which of the first elements of a stream are kept: bool[numel]."""
    if not has_operators(device_type(rng_state)) or is_compiling():
        return reference.dropout.keep_mask(numel, p, rng_state)
    ones = torch.ones(numel, dtype=torch.float16, device=rng_state.device)
    return ops.dropout.apply(ones, p, rng_state, None, (1.0, -0.0, 0.0)).bool()


def _is_dense(shape, strides):
    """Whether a tensor of this shape and these strides fills its memory without gap or overlap."""
    if len(shape) != len(strides):
        return False
    if 0 in shape:
        return True
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True
