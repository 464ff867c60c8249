"""Dropout and batch norm of DTensors: what the whole tensor would get on one device, computed where its parts are.

Imported where there is a DTensor: ``torch.distributed.tensor`` takes long to import.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from fastreg import rng_states, sharding
from fastreg.reference.batch_norm import normalized_format
from fastreg.reference.dropout import check_rng_state


def _divided(input):
    """input with no other placements than whole parts of it: what is to be summed is summed."""
    placements = [p if type(p) in (Shard, Replicate) else Replicate() for p in input.placements]
    return input if tuple(placements) == input.placements else input.redistribute(input.device_mesh, placements)


def _local(tensor, mesh, placements, grad_placements=None):
    """The part of a tensor, plain and the same on all devices or a DTensor, that lies here with these placements."""
    if tensor is None:
        return None
    if not isinstance(tensor, DTensor):
        tensor = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return tensor.redistribute(mesh, placements).to_local(grad_placements=grad_placements)


def _joined(local, like, strides):
    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=tuple(strides)
    )


def _strides_in(order, shape):
    """The strides of a dense tensor, outermost dimension first in order."""
    strides, stride = [0] * len(shape), 1
    for d in reversed(order):
        strides[d] = stride
        stride *= max(shape[d], 1)
    return strides


# ---- dropout


def dropout(name, input, rng_state, generator, dims, residual, apply) -> DTensor:
    """apply(local, rng_state, strides, index_map, residual) of the part that lies here; results joined.

    rng_state: the same everywhere. Default: the next of sharded_batch; without that, each device draws one, from its
    generator, and all take that of the mesh's first.
    """
    input = _divided(input)
    mesh, placements = input.device_mesh, input.placements
    _, starts = compute_local_shape_and_global_offset(input.shape, mesh, placements)
    local = input.to_local()
    if generator is not None:
        rng_states.check_generator(name, generator, local.device, rng_state)
    if rng_state is None:
        rng_state = _state_of(mesh, local.device, generator)
    else:
        check_rng_state(rng_state, local, name)
    order = sharding.memory_order(input.shape, input.stride())
    counted = order if dims is None else list(range(dims))
    index_map = sharding.index_map(*([values[d] for d in counted] for values in (local.shape, input.shape, starts)))
    if index_map is None:
        raise NotImplementedError(
            f"{name}: a DTensor must be sharded so that its parts are rows at equal distances in memory, got "
            f"placements {placements} of shape {list(input.shape)}: redistribute it first"
        )
    residual = _local(residual, mesh, placements)
    output = apply(local, rng_state, _strides_in(order, local.shape), index_map, residual)
    return _joined(output, input, _strides_in(order, input.shape))


def _state_of(mesh, device, generator):
    if rng_states.source is not None:
        return rng_states.source(device, generator)
    state = rng_states.draw_for_call(device, generator)
    for dimension in range(mesh.ndim):
        torch.distributed.broadcast(state, group=mesh.get_group(dimension), group_src=0)
    return state


# ---- batch norm


def batch_norm(
    input: DTensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    alone: Callable[..., Tensor],
    together: Callable[..., Tensor],
) -> DTensor:
    """``batch_norm_with_count`` of a DTensor, with its placements.

    Where channels are sharded each device normalises its own. Where anything else is, training gathers statistics as
    SyncBatchNorm does, over one dimension of the mesh. Parameters and statistics are DTensors on the same mesh, of any
    placements, or plain tensors that all devices have alike.

    alone, together: ``batch_norm_with_count`` and ``sync_batch_norm``, of the part that lies here.
    """
    input = _divided(input)
    mesh, placements = input.device_mesh, input.placements
    by_channel = [Shard(0) if p == Shard(1) else Replicate() for p in placements]
    divided = [d for d, p in enumerate(placements) if isinstance(p, Shard) and p != Shard(1) and mesh.size(d) > 1]
    summed = [Partial() if d in divided else p for d, p in enumerate(by_channel)]

    local_weight, local_bias = (_local(t, mesh, by_channel, summed) for t in (weight, bias))
    with torch.no_grad():
        statistics = [_local(t, mesh, by_channel) for t in (running_mean, running_var)]
        count = _local(num_batches_tracked, mesh, [Replicate()] * mesh.ndim)
    local = input.to_local()
    if not training or not divided:
        output = alone(local, *statistics, count, local_weight, local_bias, training, momentum, eps)
    elif len(divided) > 1:
        raise NotImplementedError(
            f"batch_norm: input must be sharded along one dimension of the mesh, besides channels, got {placements}"
        )
    else:
        group = mesh.get_group(divided[0])
        output = together(local, *statistics, count, local_weight, local_bias, momentum, eps, group)
    if training:
        for statistic, part in zip((running_mean, running_var), statistics, strict=True):
            _write_back(statistic, part, mesh, by_channel)
    result = torch.empty(input.shape, device="meta", memory_format=normalized_format(input))
    return _joined(output, input, result.stride())


@torch.no_grad()
def _write_back(statistic, part, mesh, placements):
    """Update a statistic where its part here is not the same memory."""
    if statistic is None:
        return
    own = statistic.to_local() if isinstance(statistic, DTensor) else statistic
    if own.data_ptr() == part.data_ptr():
        return
    updated = DTensor.from_local(part, mesh, placements, run_check=False, shape=statistic.shape, stride=(1,))
    target = statistic.placements if isinstance(statistic, DTensor) else [Replicate()] * mesh.ndim
    own.copy_(updated.redistribute(mesh, target).to_local())
