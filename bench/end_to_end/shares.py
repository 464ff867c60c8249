"""What a training step spends its time on: each operator's own time, on the GPU where there is one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch.profiler import ProfilerActivity, profile

from bench.end_to_end.step import Step

STEPS = 3
# The first that an operator's name matches. Sums are those of blocks, and of gradients where a block forks.
_KINDS = {
    "products": r"(?i)conv|addmm|::mm$|linear",
    "layers": r"(?i)fastreg|batch_?norm|relu|threshold|dropout|bernoulli|aten::(add|mul|div)_?$",
}
SHARES = ("share_products", "share_layers", "share_update", "share_rest")
TITLES = {
    "share_products": "convolutions and linear layers",
    "share_layers": "batch norm, relu, sums, dropout",
    "share_update": "optimiser",
    "share_rest": "the rest",
}


def shares(step: Step) -> dict[str, float]:
    """Of the time of a step, by SHARES: their sum is 1."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (step.device.type == "cuda")
    update = 0.0
    with step.settings(), profile(activities=activities, acc_events=True) as profiled:
        for index in range(STEPS):
            step.gradients()
            if index < STEPS - 1:
                profiled.stop()
                update += step.seconds(step.update)
                profiled.start()
    update += step.seconds(step.update)
    on_gpu = step.device.type == "cuda"
    own = [(e.key, e.self_device_time_total if on_gpu else e.self_cpu_time_total) for e in profiled.key_averages()]
    times = dict.fromkeys(SHARES, 0.0) | by_kind(own) | {"share_update": 1e6 * update}
    total = sum(times.values())
    return {name: time / total for name, time in times.items()}


def by_kind(own: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Operators' own times, summed by the kind of their names."""
    times: dict[str, float] = {}
    for name, time in own:
        kind = next((kind for kind, pattern in _KINDS.items() if re.search(pattern, name)), "rest")
        times[f"share_{kind}"] = times.get(f"share_{kind}", 0.0) + time
    return times
