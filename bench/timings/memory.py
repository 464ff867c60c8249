"""What a call needs beside its time: memory at its peak, memory kept for backward, kernel launches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def saved_bytes(layer: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Of the tensors that the forward pass keeps for backward, the input included, parameters and buffers not."""
    owned = {tensor.data_ptr() for tensor in (*layer.parameters(), *layer.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in owned:
            kept[tensor.data_ptr()] = max(kept.get(tensor.data_ptr(), 0), tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layer(*inputs)
    del output
    return sum(kept.values())


def peak_bytes(call: Callable[[], None], device: torch.device) -> int:
    """That `call` allocates at most at a time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        call()
    # The public events sum each operator's allocations and frees, which tells nothing of the peak.
    events = profiled.profiler.kineto_results.events()
    now = peak = 0
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def launches(call: Callable[[], None], device: torch.device) -> int | None:
    """Kernels, fills and copies that `call` starts on a GPU; None on the CPU."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiled:
        call()
        torch.cuda.synchronize(device)
    return sum(event.device_type == DeviceType.CUDA and not event.is_user_annotation for event in profiled.events())
