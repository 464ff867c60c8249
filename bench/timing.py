"""How it is timed: the providers in turn, in one process, against a copy of the same tensor.

A round times one block of calls of every provider, then the next round follows in the opposite order, so that what
else the machine does hits all alike; a ratio is the median over the rounds of (peer's time / fastreg's time). Every
provider walks through a pool of inputs of its own, and each result is freed before the next call, inside the block.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from bench.cases import MEMORY_FORMATS, Case, cases
from bench.providers import FASTREG, Provider, providers
from bench.results import CONTENDED, format_table, progress, significant

COPY = "copy"  # Tensor.clone(): what reads and writes every element once and allocates its result, as the layers do
POOL_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}  # beyond the caches that a layer would find its input in
POOL_ENTRIES = (2, 16)
BLOCK_SECONDS = 5e-4  # a block is long against the clock's resolution and the change of provider
ROUNDS = (7, 400)
SECONDS_PER_CASE = {False: 2.0, True: 0.05}  # by `quick`
CASE_COLUMNS = ["op", "direction", "shape", "dtype", "layout"]


def quantiles(samples: Sequence[float], at: Sequence[float] = (0.2, 0.5, 0.8)) -> list[float]:
    """Quantiles with linear interpolation between the sorted samples."""
    return torch.tensor(samples, dtype=torch.float64).quantile(torch.tensor(at, dtype=torch.float64)).tolist()


class Workload:
    """One provider's calls of one case: `step(entry)` for the entries of a pool, round and round."""

    def __init__(self, step: Callable, pool: Sequence, settings: Callable = contextlib.nullcontext):
        self.step = step
        self.settings = settings
        self._next = itertools.cycle(pool)

    def seconds_per_call(self, count: int, device: torch.device) -> float:
        """The mean of `count` calls: wall clock on the CPU, events on CUDA."""
        entries = list(itertools.islice(self._next, count))
        with self.settings():
            if device.type == "cuda":
                return self._by_events(entries) / count
            begin = time.perf_counter()
            for entry in entries:
                self.step(entry)
            return (time.perf_counter() - begin) / count

    def _by_events(self, entries: list) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for entry in entries:
            self.step(entry)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3


_DROPOUTS = {"dropout": "Dropout", "dropout2d": "Dropout2d", "alpha_dropout": "AlphaDropout"}


def layer_workload(case: Case, provider: Provider, inputs: list[torch.Tensor]) -> Workload:
    """`case` with a new layer of `provider`; gradients go to the input and the parameters."""
    if case.op in _DROPOUTS:
        layer = getattr(provider.layers, _DROPOUTS[case.op])(0.5)
    else:
        kind = provider.layers.BatchNorm1d if len(case.shape) == 2 else provider.layers.BatchNorm2d
        layer = kind(case.shape[1])
    layer.to(inputs[0].device)
    if case.direction == "evaluation":
        return Workload(layer.eval(), inputs, provider.settings)
    for x in inputs:
        x.requires_grad_()
    if case.direction == "forward":
        return Workload(layer, inputs, provider.settings)

    parameters = list(layer.parameters())
    gradients = [torch.randn_like(x) for x in inputs]

    def both(entry):
        x, dy = entry
        torch.autograd.grad(layer(x), [x, *parameters], dy)

    if case.direction == "both":
        return Workload(both, list(zip(inputs, gradients, strict=True)), provider.settings)
    with provider.settings():
        graphs = [(layer(x), [x, *parameters], dy) for x, dy in zip(inputs, gradients, strict=True)]
    return Workload(lambda graph: torch.autograd.grad(*graph, retain_graph=True), graphs, provider.settings)


def calls_per_block(workload: Workload, device: torch.device) -> int:
    """How many calls fill a block; finding out warms up caches, allocator and thread pool."""
    workload.seconds_per_call(3, device)
    count = 1
    while workload.seconds_per_call(count, device) * count < BLOCK_SECONDS and count < 1024:
        count *= 2
    return count


def measure(case: Case, device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Seconds per call of every provider and of the copy, one sample per round, for about `seconds`."""
    entries = min(max(math.ceil(POOL_BYTES[device.type] / case.tensor_bytes), POOL_ENTRIES[0]), POOL_ENTRIES[1])
    original = torch.randn(case.shape, device=device, dtype=case.dtype)
    original = original.contiguous(memory_format=MEMORY_FORMATS[case.layout])

    def inputs() -> list[torch.Tensor]:
        return [original.clone() for _ in range(entries)]

    with torch.set_grad_enabled(case.direction != "evaluation"):
        workloads = {COPY: Workload(torch.clone, inputs())}
        for provider in providers(case.op, device):
            workloads[provider.name] = layer_workload(case, provider, inputs())
        counts = {name: calls_per_block(workload, device) for name, workload in workloads.items()}
        with _no_garbage_collection():
            return _rounds(workloads, counts, device, seconds)


def _rounds(workloads, counts, device, seconds) -> dict[str, list[float]]:
    samples = {name: [] for name in workloads}
    order = list(workloads)
    deadline = time.perf_counter() + seconds
    for finished in range(ROUNDS[1]):
        if finished >= ROUNDS[0] and time.perf_counter() > deadline:
            break
        for name in order:
            samples[name].append(workloads[name].seconds_per_call(counts[name], device))
        order.reverse()
    return samples


@contextlib.contextmanager
def _no_garbage_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def summarise(case: Case, samples: dict[str, list[float]]) -> Iterator[dict]:
    """One row per provider. `ratio`: how many times longer than fastreg; `of_copy`: share of the copy's bandwidth."""
    gb = dict.fromkeys(samples, case.necessary_bytes / 1e9) | {COPY: 2 * case.tensor_bytes / 1e9}
    speed = {name: gb[name] / quantiles(times)[1] for name, times in samples.items()}
    for name, times in samples.items():
        ratios = [own / ours for own, ours in zip(times, samples[FASTREG.name], strict=True)]
        row = case.describe() | {"provider": name, "rounds": len(times)}
        row |= zip(("us_20", "us", "us_80"), (1e6 * q for q in quantiles(times)), strict=True)
        row |= zip(("ratio_20", "ratio", "ratio_80"), quantiles(ratios), strict=True)
        yield row | {"gb_per_s": speed[name], "of_copy": speed[name] / speed[COPY]}


def run(device: torch.device, quick: bool = False) -> Iterator[list[dict]]:
    """Time every case; yields the rows of each as it is done."""
    for case in progress(cases(quick), "timings", "case"):
        yield list(summarise(case, measure(case, device, SECONDS_PER_CASE[quick])))


def report(rows: list[dict]) -> str:
    """A line per case and PyTorch provider; GB/s and the share of the copy's bandwidth are fastreg's.

    A ratio marked with ! was measured while other programs took CPU time."""
    ours = {_case(row): row for row in rows if row["provider"] == FASTREG.name}
    lines = []
    for row in rows:
        if row["provider"] in (FASTREG.name, COPY):
            continue
        mine = ours[_case(row)]
        ratio = f"{significant(row['ratio'])} ({significant(row['ratio_20'])}-{significant(row['ratio_80'])})"
        ratio += "!" if row.get("contention", 0) > CONTENDED else " "
        times = [significant(row["us"]), significant(mine["us"])]
        lines.append([*_case(row), row["provider"], *times, ratio, f"{mine['gb_per_s']:.1f}", f"{mine['of_copy']:.0%}"])
    header = [*CASE_COLUMNS, "peer", "peer us", "fastreg us", "ratio (20-80 %) ", "GB/s", "of copy"]
    return format_table(header, lines, words=len(CASE_COLUMNS) + 1)


def _case(row: dict) -> tuple[str, ...]:
    return tuple(row[column] for column in CASE_COLUMNS)
