"""How it is timed: the providers in turn, in one process, against a copy of the same tensor.

A round times one block of calls of every provider, then the next round follows in the opposite order, so that what
else the machine does hits all alike; a ratio is the median over the rounds of (peer's time / fastreg's time). Every
provider walks through a pool of inputs of its own, and each result is freed before the next call, inside the block.

What fails is left out and listed. A case stands in the list while it runs, so that one that ends the process is known.
"""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from bench import failures
from bench.results import progress
from bench.statistics import quantiles
from bench.timings import memory, prediction
from bench.timings.cases import Case
from bench.timings.provider import Provider
from bench.timings.providers import FASTREG, of_case
from bench.timings.workloads import Workload, copy_workload, layer_workload

COPY = "copy"
POOL_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}  # beyond the caches that a layer would find its input in
POOL_ENTRIES = (2, 16)
BLOCK_SECONDS = 5e-4  # a block is long against the clock's resolution and the change of provider
ROUNDS = (7, 400)
SECONDS_PER_CASE = {False: 2.0, True: 0.05}  # at most, preparation included; by `quick`
Samples = dict[str, list[float]]  # seconds per call, one per round, of every provider


class Timed(Protocol):
    """Calls that are timed in blocks."""

    def seconds_per_call(self, count: int, device: torch.device) -> float: ...


@dataclass(frozen=True)
class Job:
    """minutes: for all cases together, as far as the fewest rounds allow. every_mode: compile also what is uncompiled
    by default. done: keys of the cases that need no run. needs: also find memory and launches. failed: what failed."""

    cases: Sequence[Case]
    providers: Sequence[Provider]
    device: torch.device
    minutes: float = 5
    quick: bool = False
    every_mode: bool = False
    done: Collection[tuple[str, ...]] = ()
    seconds: float | None = None  # for a case, at most; None: as SECONDS_PER_CASE says
    needs: bool = True
    failed: list[dict] = field(default_factory=list)

    def run(self) -> Iterator[list[dict]]:
        """Time every case; yields no rows as a case begins, and its rows as it is done.

        Raises:
            BrokenDevice: a case has left the GPU so that nothing more runs in this process.
        """
        waiting = [case for case in self.cases if case.key not in self.done]
        end = time.perf_counter() + 60 * self.minutes
        with progress(waiting, "timings", "case") as bar:
            for index, case in enumerate(bar):
                bar.set_postfix_str(f"{case.op} {case.mode}", refresh=False)
                begin = time.perf_counter()
                share = (end - begin) / (len(waiting) - index)
                deadline = begin + min(share, self.seconds or SECONDS_PER_CASE[self.quick])
                rows: list[dict] = []
                with failures.listed(self.failed, case.describe(), self.device):
                    yield []
                    samples, columns = self._measure(case, deadline)
                    planned = prediction.bytes_moved(case, self.device)
                    rows += summarise(case, samples, columns, planned, prediction.estimated_us(case, self.device))
                yield rows

    def _measure(self, case: Case, deadline: float) -> tuple[Samples, dict[str, dict]]:
        errors: dict[str, str] = {}
        try:
            return measure(case, self._providers(case), self.device, deadline, self.needs, errors)
        finally:
            self.failed.extend(case.describe() | {"provider": name, "error": error} for name, error in errors.items())

    def _providers(self, case: Case) -> list[Provider]:
        return of_case(case, self.device, self.providers, self.every_mode)


def make_inputs(case: Case, device: torch.device) -> list[tuple[torch.Tensor, ...]]:
    """A pool of entries, each the input and, if the operator takes one, the residual."""
    entries = min(max(math.ceil(POOL_BYTES[device.type] / case.tensor_bytes), POOL_ENTRIES[0]), POOL_ENTRIES[1])
    original = torch.randn(case.shape, device=device, dtype=case.dtype).contiguous(memory_format=case.memory_format)
    return [tuple(original.clone() for _ in range(1 + case.definition.residual)) for _ in range(entries)]


def measure(
    case: Case,
    providers: Sequence[Provider],
    device: torch.device,
    deadline: float,
    needs: bool = True,
    errors: dict[str, str] | None = None,
) -> tuple[Samples, dict[str, dict]]:
    """(samples, further columns by provider); the deadline is one of time.perf_counter().

    Others than fastreg may fail: they are then left out, and `errors` and stderr say why."""
    workloads = {COPY: copy_workload(make_inputs(case, device))}
    counts = {COPY: calls_per_block(workloads[COPY], device)}
    columns: dict[str, dict] = {}
    with torch.set_grad_enabled(case.mode != "evaluation"):
        for provider in providers:
            try:
                workload, needed = _prepare(case, provider, device, needs)
                counts[provider.name] = calls_per_block(workload, device)
            except Exception as error:
                if errors is not None:
                    errors[provider.name] = failures.line(error)
                if provider.name == FASTREG.name:
                    raise
                print(f"\n{provider.name} failed: {' '.join(case.key)}: {str(error)[:200]}", file=sys.stderr)
                continue
            workloads[provider.name], columns[provider.name] = workload, needed
        with _no_garbage_collection():
            return rounds(workloads, counts, device, deadline), columns


def _prepare(case: Case, provider: Provider, device: torch.device, needs: bool) -> tuple[Workload, dict]:
    with provider.settings():
        inputs = make_inputs(case, device)
        if provider.workload:
            workload, needs = provider.workload(case, inputs), False
        else:
            layer = provider.layer(case).to(device)
            workload = layer_workload(case, provider, inputs, layer)
        for _ in range(2):  # what is compiled or chosen once does not count
            workload.call()
        if not needs:
            return workload, {}
        entry = tuple(map(provider.own, inputs[0]))
        trained = case.mode != "evaluation" and not provider.in_place and entry[0].layout == torch.strided
        return workload, {
            "saved_bytes": memory.saved_bytes(layer, entry) if trained else None,
            "peak_bytes": memory.peak_bytes(workload.call, device),
            "launches": memory.launches(workload.call, device),
        }


def calls_per_block(workload: Timed, device: torch.device) -> int:
    """How many calls fill a block; finding out warms up caches, allocator and thread pool."""
    workload.seconds_per_call(2, device)
    count = 1
    while workload.seconds_per_call(count, device) * count < BLOCK_SECONDS and count < 1024:
        count *= 2
    return count


def rounds(workloads: dict[str, Timed], counts: dict[str, int], device: torch.device, deadline: float) -> Samples:
    """Samples of a few rounds at least, and of as many as there is time for."""
    samples: Samples = {name: [] for name in workloads}
    order = list(workloads)
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


def summarise(
    case: Case,
    samples: Samples,
    columns: dict[str, dict] | None = None,
    planned: float | None = None,
    estimated: float | None = None,
) -> Iterator[dict]:
    """One row per provider. `ratio`: how many times longer than fastreg; `of_copy`: share of the copy's bandwidth;
    `predicted_us`: of fastreg, what moving the `planned` bytes takes at the copy's bandwidth;
    `estimated_us`: of fastreg, what was estimated before."""
    moved = dict.fromkeys(samples, case.necessary_bytes) | {COPY: 2 * case.tensor_bytes}
    speed = {name: moved[name] / 1e9 / quantiles(times)[1] for name, times in samples.items()}
    nothing = {"saved_bytes": None, "peak_bytes": None, "launches": None}
    for name, row in ratios(samples).items():
        row = case.describe() | {"provider": name} | row
        row |= {"bytes": moved[name], "gb_per_s": speed[name], "of_copy": speed[name] / speed[COPY]}
        predicted = planned / speed[COPY] / 1e3 if planned and name == FASTREG.name else None
        row |= {"predicted_us": predicted, "estimated_us": estimated if name == FASTREG.name else None}
        yield row | nothing | (columns or {}).get(name, {})


def ratios(samples: Samples) -> dict[str, dict]:
    """By provider: rounds, us per call, and `ratio`, how many times longer than fastreg, with 20 and 80 % quantiles."""
    rows = {}
    for name, times in samples.items():
        ratio = [own / ours for own, ours in zip(times, samples[FASTREG.name], strict=True)]
        rows[name] = {"rounds": len(times)}
        rows[name] |= zip(("us_20", "us", "us_80"), (1e6 * q for q in quantiles(times)), strict=True)
        rows[name] |= zip(("ratio_20", "ratio", "ratio_80"), quantiles(ratio), strict=True)
    return rows
