"""Dropout, and the random stream that every backend shares.

An rng_state, int64[2] read as unsigned, is the (seed, offset) of a Philox4x32-10 stream. Element i belongs to block
i div 8, and block b of call c gives eight 16-bit draws: the output of Philox with key (seed low, seed high) and
counter (c low, c high, b low, b high), read as little-endian 16-bit numbers. An element is dropped where its 32-bit
draw, high half from call c = offset div 4 and low half from call c + 1, is below p * 2**32.

Words are 32-bit numbers in int64 tensors, so that any device can hold them.
"""

import math

import torch

LOW = 0xFFFFFFFF
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
DRAWS_PER_BLOCK = 8


def split(value):
    """The low and high words of 64-bit numbers."""
    return value & LOW, value >> 32 & LOW


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011): four words of counter and two of key to four words, elementwise."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low0, high0 = split(MULTIPLIERS[0] * c0)  # wraps past 2**63, which leaves the bits as they are
        low1, high1 = split(MULTIPLIERS[1] * c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + KEY_STEPS[0] & LOW, k1 + KEY_STEPS[1] & LOW
    return c0, c1, c2, c3


def draws(block, seed, call):
    """The 16-bit draws of blocks (int64[B]) in a Philox call: int64[B, 8]. seed, call: int64[]."""
    zero = torch.zeros_like(block)
    counter = [zero + word for word in (*split(call), *split(block))]
    words = torch.stack(philox(counter, split(seed)), dim=-1)
    return torch.stack((words & 0xFFFF, words >> 16), dim=-1).flatten(-2)


def keep_mask(numel, p, rng_state, index_map=None):
    """Which of the first numel elements of a stream are kept.

    Args:
        numel (int): number of elements.
        p (float): probability that an element is dropped, exact to 2**-32.
        rng_state (Tensor): int64[2].
        index_map: (first, row, row_stride): take element first + (j div row) * row_stride + j mod row of the stream
            as the j-th. Default: (0, numel, 0).

    Returns:
        Tensor: bool[numel], on the device of rng_state.
    """
    seed, offset = rng_state.unbind()
    call = offset >> 2 & (1 << 62) - 1
    if index_map is None:
        element = None
        block = torch.arange((numel + DRAWS_PER_BLOCK - 1) // DRAWS_PER_BLOCK, device=rng_state.device)
    else:
        first, row, row_stride = index_map
        j = torch.arange(numel, device=rng_state.device)
        element = first + j // row * row_stride + j % row
        block = element // DRAWS_PER_BLOCK

    def draws_of_elements(call):
        table = draws(block, seed, call)
        if element is None:
            return table.flatten()[:numel]
        return table.gather(1, (element % DRAWS_PER_BLOCK).unsqueeze(1)).squeeze(1)

    threshold = math.floor(p * 2.0**32 + 0.5)
    draw = draws_of_elements(call) << 16 | draws_of_elements(call + 1)
    return draw >= threshold


def empty_elementwise_like(x):
    """An uninitialised result of torch's elementwise operations on x: of their strides (csrc/operators/results.h)."""
    for memory_format in (torch.contiguous_format, torch.channels_last)[: 2 if x.dim() == 4 else 1]:
        if x.is_contiguous(memory_format=memory_format):
            return torch.empty_like(x, memory_format=memory_format)
    return torch.empty_like(x)


def empty_result_like(x, dims=None, transform=None, residual=None):
    """An uninitialised result of dropout of x, or of feature dropout (csrc/operators/dropout.h)."""
    if dims is None:
        keeps_strides = x.is_cuda and transform is None
    else:
        from torch.fx.experimental.symbolic_shapes import guard_or_true  # takes long: compilers have imported it

        keeps_strides = residual is None and any(guard_or_true(size != 1) for size in x.shape[dims:])
    return torch.empty_like(x) if keeps_strides else empty_elementwise_like(x)


def transformed(input, keep, p, transform=None, residual=None):
    """keep ? input * scale + shift : fill, in the compute type, rounded once.

    Args:
        input (Tensor): floating point.
        keep (Tensor): bool, of a shape that broadcasts to input's.
        p (float): probability that an element is dropped.
        transform: (scale, shift, fill). Default: (1 / (1 - p), -0.0, 0.0); a sum with -0.0 changes nothing.
        residual (Tensor, optional): of input's shape and dtype, in place of shift and fill.
    """
    scale, shift, fill = transform or (1.0 / (1.0 - p) if p < 1.0 else 0.0, -0.0, 0.0)
    compute_dtype = torch.promote_types(input.dtype, torch.float32)

    def constant(value):
        return torch.full((), value, dtype=compute_dtype, device=input.device)

    if residual is not None:
        shift = fill = residual
    else:
        fill = constant(fill).to(input.dtype)
        shift = constant(shift) if shift else None
    if shift is None:
        kept = input.to(compute_dtype) * scale
    else:  # the product of two float32 numbers is exact in float64
        kept = (input.double() * constant(scale).double() + shift.double()).to(compute_dtype)
    return torch.where(keep, kept.to(input.dtype), fill)


def dropout(input, p, rng_state, strides=None, index_map=None, transform=None):
    """Dropout as a function of rng_state: the definition of ``torch.ops.fastreg.dropout``.

    Args:
        input (Tensor): floating point, any shape.
        p (float): probability that an element is dropped.
        rng_state (Tensor): int64[2], on the input's device or the CPU.
        strides: the dense strides in whose memory order elements are numbered. Default: those of empty_like(input).
        index_map: as in :func:`keep_mask`.
        transform: as in :func:`transformed`.

    Returns:
        Tensor: kept elements times 1 / (1 - p), rounded once; dropped ones 0, also where the input is not finite.
    """
    strides = torch.empty_like(input).stride() if strides is None else strides
    keep = keep_mask(input.numel(), p, rng_state.to(input.device), index_map).as_strided(input.shape, strides)
    return transformed(input, keep, p, transform)


def feature_dropout(input, dims, p, rng_state, index_map=None, transform=None, residual=None):
    """Dropout with one draw per index of the leading dimensions: that of ``torch.ops.fastreg.feature_dropout``.

    Args:
        input (Tensor): floating point, with at least ``dims`` dimensions.
        dims (int): how many leading dimensions are counted, in their own order, whatever the memory order.
        p, rng_state, index_map: as in :func:`dropout`.
        transform, residual: as in :func:`transformed`.
    """
    leading = input.shape[:dims]
    keep = keep_mask(math.prod(leading), p, rng_state.to(input.device), index_map)
    return transformed(input, keep.reshape(*leading, *[1] * (input.dim() - dims)), p, transform, residual)


def draw_state(device, generator=None):
    """A fresh rng_state from a generator, none: the device's own: a seed of 64 bits, offset 0."""
    given = {} if generator is None else {"generator": generator}  # another overload, which compilers do not know
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), **given, dtype=torch.int64, device=device)
    return torch.cat((seed, torch.zeros_like(seed)))


def check_rng_state(rng_state, input, op="dropout"):
    """Raise what the operators raise where rng_state does not go with input. Its values are not looked at."""
    if not isinstance(rng_state, torch.Tensor) or rng_state.dtype != torch.int64:
        got = rng_state.dtype if isinstance(rng_state, torch.Tensor) else type(rng_state).__name__
        raise TypeError(f"{op}: rng_state must be an int64 tensor, got {got}")
    if rng_state.shape != (2,):
        raise ValueError(f"{op}: rng_state must have shape [2], got {list(rng_state.shape)}")
    if rng_state.device not in (input.device, torch.device("cpu")):
        raise RuntimeError(f"{op}: rng_state must be on {input.device} or the CPU, got {rng_state.device}")
