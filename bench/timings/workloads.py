"""One provider's calls of one case."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.timings.cases import Case
from bench.timings.provider import Provider

Entry = tuple[Tensor, ...]  # the input and, if the operator takes one, the residual


class Workload:
    """`step(entry)` for the entries of a pool, round and round."""

    def __init__(self, step: Callable, pool: Sequence, settings: Callable = contextlib.nullcontext):
        self.step = step
        self.settings = settings
        self._next = itertools.cycle(pool)

    def call(self) -> None:
        """The next call, its result dropped."""
        with self.settings():
            self.step(next(self._next))

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


def copy_workload(inputs: list[Entry]) -> Workload:
    """Tensor.clone() of the input: reads and writes every element once, and allocates its result, as the layers do."""
    return Workload(lambda entry: entry[0].clone(), inputs)


def layer_workload(case: Case, provider: Provider, inputs: list[Entry], layer: nn.Module) -> Workload:
    """`case` with a layer of `provider`; gradients go to the input, the residual and the parameters."""
    own = [tuple(map(provider.own, entry)) for entry in inputs]
    if case.mode == "evaluation":
        layer.eval()
        return Workload(lambda entry: layer(*entry), own, provider.settings)
    gradients = [provider.own(torch.randn_like(entry[0])) for entry in inputs]
    inputs, parameters = own, list(layer.parameters())
    if not provider.in_place:
        for x in itertools.chain.from_iterable(inputs):
            x.requires_grad_()
    if case.mode == "forward":
        return Workload(lambda entry: layer(*entry), inputs, provider.settings)

    asked = [[*(x for x in entry if x.requires_grad), *parameters] for entry in inputs]
    calls = list(zip(inputs, asked, gradients, strict=True))

    def both(call):
        entry, sources, dy = call
        torch.autograd.grad(layer(*entry), sources, dy)

    if case.mode == "both":
        return Workload(both, calls, provider.settings)
    with provider.settings():
        if case.mode == "graph":
            return Workload(torch.cuda.CUDAGraph.replay, [_captured(both, call) for call in calls])
        graphs = [(layer(*entry), sources, dy) for entry, sources, dy in calls]
    return Workload(lambda graph: torch.autograd.grad(*graph, retain_graph=True), graphs, provider.settings)


def _captured(step: Callable, call) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # what is chosen, compiled or allocated once is not to be captured
            step(call)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(call)
    return graph
