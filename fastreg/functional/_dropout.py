"""Dropout."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling
from torch.fx import Proxy
from torch.overrides import handle_torch_function

from fastreg import ops, reference
from fastreg._extension import disabled
from fastreg.functional._routing import has_operators, is_ours


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Zero each element with probability p and multiply the others by 1 / (1 - p), in training.

    Nothing but 16 bytes is kept for the backward pass. Dropped elements are 0 also where the input is not finite.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014.

    Args:
        input (Tensor): any shape; float32, float64, float16 or bfloat16 where something is dropped.
        p (float): probability of an element to be zeroed, in [0, 1], exact to 2**-32. Default: 0.5.
        training (bool): apply dropout. Default: True.
        inplace (bool): modify and return input. Default: False.
        rng_state (Tensor, optional): int64[2], (seed, offset) of the random stream, on the input's device or the CPU.
            The mask is a function of it, the same on every device and in every dtype; explicit offsets must differ
            by 8. Default: drawn from the device's generator, which ``torch.manual_seed`` seeds.

    Returns:
        Tensor: like input; input itself where training is False, p is 0 or there are no elements.

    Raises:
        ValueError: p is not in [0, 1], or rng_state not of shape [2].
        TypeError: rng_state is not an int64 tensor.
        RuntimeError: input is not floating point, rng_state is on another device, or autograd forbids to modify input.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: p must lie in [0, 1], got {p}")
    if not is_ours(input):
        return _dropout_of_others(input, p, training, inplace, rng_state)
    if not training or p == 0.0:
        return input
    if not has_operators(input):
        return _dropout_composed(input, p, inplace, rng_state)
    if is_compiling():
        return _dropout_traced(input, p, inplace, rng_state)
    if input.numel() == 0:
        return input
    if inplace:
        ops.dropout.apply_(input, p, rng_state)
        return input
    return ops.dropout.apply(input, p, rng_state)


def _dropout_traced(input, p, inplace, rng_state):
    """Dropout for a compiler: a pure operator on a state that a torch operator draws (on any device a seed of 64
    bits, offset 0), with the memory order that eager code would see."""
    if rng_state is None:
        rng_state = reference.dropout.draw_state(input.device)
    strides = torch.empty_like(input).stride()
    output = torch.ops.fastreg.dropout(input, p, rng_state, strides)
    return input.copy_(output) if inplace else output


def _dropout_composed(input, p, inplace, rng_state):
    if rng_state is None:
        rng_state = reference.dropout.draw_state(input.device)
    else:
        reference.dropout.check_rng_state(rng_state, input)
    output = reference.dropout.dropout(input, p, rng_state)
    return input.copy_(output) if inplace else output


def _dropout_of_others(input, p, training, inplace, rng_state):
    if isinstance(input, Proxy):
        return handle_torch_function(
            dropout, (input,), input, p=p, training=training, inplace=inplace, rng_state=rng_state
        )
    if not isinstance(input, Tensor) or disabled():
        return F.dropout(input, p, training, inplace)
    if not training or p == 0.0:
        return input
    if rng_state is not None:
        raise NotImplementedError(
            f"dropout: rng_state must be None for input that torch's own dropout takes, got {type(input).__name__} of "
            f"{input.dtype} on {input.device}"
        )
    if input.dtype.is_floating_point or input.dtype.is_complex or p == 1.0 or input.numel() == 0:
        return F.dropout(input, p, training, inplace)
    raise RuntimeError(f"dropout: input must be floating point where elements are dropped, got {input.dtype}")
