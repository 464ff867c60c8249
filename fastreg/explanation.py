"""How the CUDA kernels would normalise a tensor."""

from typing import Any

import torch
from torch import Tensor

from fastreg import _extension
from fastreg.reference.batch_norm import normalized_format

# Whose speed is known: csrc/kernels/batch_norm/estimate.cpp.
DEVICES = ("H200", "H100", "A100", "L4", "RTX 4090", "T4")


def _channel_layout(x):
    """(planes, channels, size, rows): x in memory, or the operators' copy of it (csrc/operators/layout.h)."""
    planes, channels = x.shape[:2]
    size = x[0, 0].numel() if planes and channels else 0
    rows = not torch.empty(x.shape, device="meta", memory_format=normalized_format(x)).is_contiguous()
    return planes, channels, size, rows or (size == 1 and channels > 1)


def explain(
    input: Tensor,
    *,
    training: bool = True,
    backward: bool = False,
    act: str | None = None,
    residual: bool = False,
    device_limits: int | str | None = None,
    tier: str | None = None,
) -> dict[str, Any]:
    """The plan of the CUDA kernels for a batch norm of a tensor. Nothing is computed, and no GPU is needed.

    Args:
        input (Tensor): [N, C, ...], not empty; float32, float64, float16 or bfloat16. Only shape, dtype, strides and
            alignment matter: it may lie on any device.
        training (bool): with the batch's statistics; else with the running ones. Default: True.
        backward (bool): the gradients instead of the output. Default: False.
        act (str, optional): the name of the activation that is computed besides, as by
            :func:`fastreg.functional.batch_norm_act`; "identity" for none. Default: no more than a batch norm is
            computed, unless residual says otherwise.
        residual (bool): with a residual: forward reads it, and writes what backward needs; backward writes its
            gradient. Default: False.
        device_limits (int or str, optional): compute capability of a typical device to plan for: 75, 80, 86, 90, 100 or
            120; or the name of a device whose speed is known: "H200", "H100", "A100", "L4", "RTX 4090" or "T4".
            Default: the current CUDA device.
        tier (str, optional): plan this tier, whether or not it is the fastest. Default: the one that is chosen.

    Returns:
        dict: ``tier``, how the work is done: ``slab`` (channels kept in a block's shared memory), ``cluster`` (in that
        of a cluster of blocks), ``grid`` (in that of a team of blocks that wait for each other), ``l2`` (the same, what
        does not fit there left in L2) or ``streamed`` (read twice); ``launches``; ``bytes_per_element`` of memory read
        and written, all gradients wanted, an eighth for each time that one bit per element is; where the tier says so,
        ``blocks``, ``threads`` per block, ``cluster`` in blocks, ``channels_per_block``, ``buffers`` and
        ``shared_bytes`` per block; of teams, ``splits`` (blocks of one) and ``reread`` (share of the elements read once
        more, from L2). For a device that was named, ``estimate``: ``microseconds``, and what they consist of:
        ``launches``, the larger of ``memory`` and ``l2``, and ``reduction``; ``tiers``, the microseconds of each tier
        that can do it. It is computed from assumed bandwidths and latencies, and no measurement; the tier is not
        chosen by it. Where the tier asked for cannot do it, ``refusal`` instead: why.

    Raises:
        ValueError: input is empty or has fewer than 2 dimensions; device_limits or tier is not one of those named; act
            is not the name of an activation that the kernels compute.
        TypeError: input is not of one of those dtypes.
        RuntimeError: the extension was not built, or there is no CUDA device and device_limits is None.
    """
    if input.dim() < 2 or input.numel() == 0:
        raise ValueError(f"explain: input must have at least 2 dimensions and one element, got {list(input.shape)}")
    if input.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise TypeError(f"explain: input must be float32, float64, float16 or bfloat16, got {input.dtype}")
    aligned = input.is_meta or input.data_ptr() % 16 == 0
    layout = *_channel_layout(input), input.element_size(), aligned
    return _extension.module().plan_batch_norm(*layout, training, backward, act, residual, device_limits, tier)
