"""A network's calls in each variant in turn, from the same weights, on the same batch: as the layers are timed.

training: a step of forward, cross entropy, backward, and SGD with momentum. evaluation: forward without gradients.
On the CPU the clock is the process's CPU time, of all threads, which other programs disturb least.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

import fastreg
from bench import failures
from bench.end_to_end.networks import Network
from bench.end_to_end.step import Step, Variant
from bench.results import progress
from bench.timings.cases import key
from bench.timings.providers import FASTREG
from bench.timings.run import calls_per_block, ratios, rounds
from bench.users.networks import networks

BATCHES = (1, 4, 32)
MODES = ("training", "evaluation")
SECONDS_TO_HANG = 300.0
# By the names that providers of single layers have, so that result files are compared alike.
VARIANTS = {
    "torch": Variant(),
    FASTREG.name: Variant(converted=True),
    "unfused": Variant(converted=True, fused=False),
    "patched": Variant(patched=True),
}


class Program:
    """The calls of one variant."""

    def __init__(self, network: Network, model: nn.Module, variant: Variant, mode: str, device: torch.device):
        self.step = Step(network, model, variant, device, lambda model: model)
        self.step.model.train(mode == "training")
        self.call = self.step if mode == "training" else self._forward
        self.clock = time.process_time if device.type == "cpu" else time.perf_counter

    def _forward(self) -> None:
        with torch.no_grad():
            self.step.model(self.step.x)

    def seconds_per_call(self, count: int, device: torch.device) -> float:
        synchronize = torch.cuda.synchronize if device.type == "cuda" else contextlib.nullcontext
        with self.step.settings():  # patching is no part of the time
            synchronize()
            begin = self.clock()
            for _ in range(count):
                self.call()
            synchronize()
            return (self.clock() - begin) / count


def describe(network: Network, mode: str) -> dict:
    described = network.describe()
    shape = f"{network.batch}x{described['input']}"
    return {"op": network.name, "mode": mode, "shape": shape} | {name: described[name] for name in ("dtype", "layout")}


@dataclass(frozen=True)
class Job:
    """minutes: for all, as far as the fewest rounds allow. networks: names, None: all. done, failed: as for layers."""

    device: torch.device
    minutes: float
    quick: bool = False
    networks: Collection[str] | None = None
    done: Collection[tuple[str, ...]] = ()
    failed: list[dict] = field(default_factory=list)

    def run(self) -> Iterator[list[dict]]:
        batches = BATCHES[1:2] if self.quick else BATCHES
        cases = [(network, mode) for batch in batches for network in networks(batch) for mode in MODES]
        cases = [(n, m) for n, m in cases if n.name in (self.networks or [n.name for n, _ in cases])]
        waiting = [case for case in cases if key(describe(*case)) not in self.done]
        end = time.perf_counter() + 60 * self.minutes
        for index, (network, mode) in enumerate(progress(waiting, "users", "case")):
            begin = time.perf_counter()
            deadline = begin + (0.0 if self.quick else (end - begin) / (len(waiting) - index))
            rows: list[dict] = []
            with failures.listed(self.failed, describe(network, mode), self.device, SECONDS_TO_HANG):
                yield []
                rows += summarise(network, mode, measure(network, mode, self.device, deadline))
            yield rows


def measure(network: Network, mode: str, device: torch.device, deadline: float) -> dict[str, list[float]]:
    """Seconds per call, one sample per round, by variant."""
    torch.manual_seed(0)
    initial = network.build()
    programs = {
        name: Program(network, copy.deepcopy(initial), variant, mode, device) for name, variant in VARIANTS.items()
    }
    counts = {name: calls_per_block(program, device) for name, program in programs.items()}
    return rounds(programs, counts, device, deadline)


def summarise(network: Network, mode: str, samples: dict[str, list[float]]) -> Iterator[dict]:
    """A row per variant. `ratio`: how many times longer than the converted one; sites: fused ones in this mode."""
    model = fastreg.convert(network.build())
    training = mode == "training"
    sites = sum(site.training if training else site.evaluation for site in fastreg.report(model).fused)
    for name, row in ratios(samples).items():
        yield describe(network, mode) | {"provider": name} | row | {"sites": sites, "source": network.source}
