"""Training steps of each variant of a network in turn, from the same initial weights, on the same batch.

A step is forward, cross entropy, backward, and SGD with momentum. A round is a step of each variant, the next one in
the opposite order; a speed-up is the median over the rounds of (plain's time / the variant's time).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from bench import failures
from bench.end_to_end import distributed
from bench.end_to_end import networks as usual
from bench.end_to_end.networks import Network
from bench.end_to_end.shares import SHARES, shares
from bench.end_to_end.step import VARIANTS, Step, Variant, Wrap
from bench.results import progress
from bench.statistics import quantiles
from bench.timings.memory import peak_bytes

PLAIN = "plain"
ROUNDS = (5, 100)
SECONDS_PER_NETWORK = {False: 20.0, True: 0.0}  # by `quick`; compiling and warming up not included
SECONDS_TO_HANG = 300.0  # of a network, all variants compiled
WARM_UP = 2
NETWORK_COLUMNS = ("network", "source", "batch", "input", "dtype", "layout", "devices")


def key(row: dict) -> tuple:
    """The network, and on how many devices, that a row of the results is of."""
    return tuple(row[column] for column in NETWORK_COLUMNS)


@dataclass(frozen=True)
class Job:
    """networks, variants: their names, None: all; plain, which the others are compared with, is always among them.
    known: all networks for a device, of which a quick job has few. done: keys of what needs no run. failed: what
    failed, and is left out."""

    device: torch.device
    quick: bool = False
    networks: Collection[str] | None = None
    variants: Collection[str] | None = None
    done: Collection[tuple] = ()
    failed: list[dict] = field(default_factory=list)
    known: Callable[[torch.device, bool], list[Network]] = usual.networks

    def run(self) -> Iterator[list[dict]]:
        """Train each network on one device, and where there are several GPUs, on all; yields the rows of each.

        Raises:
            BrokenDevice: a network has left the GPU so that nothing more runs in this process.
        """
        several = torch.cuda.device_count() if self.device.type == "cuda" else 1
        chosen = {name: VARIANTS[name] for name in VARIANTS if name in (PLAIN, *(self.variants or VARIANTS))}
        for network in self.known(self.device, self.quick):
            if self.networks and network.name not in self.networks:
                continue
            for devices in sorted({1, several}):
                described = network.describe() | {"devices": devices}
                if key(described) in self.done:
                    continue
                case = {column: described[column] for column in NETWORK_COLUMNS}
                rows: list[dict] = []
                with failures.listed(self.failed, case, self.device, SECONDS_TO_HANG):
                    yield []
                    for variants in together(chosen):
                        if devices == 1:
                            samples = measure(network, variants, self.device, SECONDS_PER_NETWORK[self.quick])
                        else:
                            work = partial(measure, network, variants, seconds=0.0, with_shares=False)  # as many rounds
                            samples = distributed.run(work, self.device.type, devices)
                        new = summarise(network, devices, *samples)
                        rows += [row for row in new if row["variant"] not in {row["variant"] for row in rows}]
                yield rows


def together(variants: Mapping[str, Variant]) -> list[dict[str, Variant]]:
    """Those that take turns. Patching torch has all code compiled anew, so what is patched takes turns with plain."""
    patched = {name: variant for name, variant in variants.items() if variant.patched}
    others = {name: variant for name, variant in variants.items() if not variant.patched}
    return [others, *([{PLAIN: variants[PLAIN]} | patched] if patched else [])]


def measure(
    network: Network,
    variants: Mapping[str, Variant],
    device: torch.device,
    seconds: float,
    wrap: Wrap = lambda model: model,
    with_shares: bool = True,
) -> tuple[dict[str, list[float]], dict[str, dict]]:
    """(seconds per step, one sample per round, and further columns), by variant."""
    torch.compiler.reset()
    torch.manual_seed(0)
    initial = network.build()
    steps, columns = {}, {}
    for name, variant in progress(variants.items(), f"{network.name}: preparing", "variant"):
        steps[name] = Step(network, copy.deepcopy(initial), variant, device, wrap)
        for _ in range(WARM_UP):
            steps[name]()
        columns[name] = {"peak_bytes": peak_bytes(steps[name], device)}
        measurable = with_shares and not variant.compiled  # compiled code has no operators to tell apart
        columns[name] |= shares(steps[name]) if measurable else dict.fromkeys(SHARES)
    return rounds(steps, seconds), columns


def rounds(steps: dict[str, Step], seconds: float) -> dict[str, list[float]]:
    """Samples of a few rounds at least, and of as many as there is time for."""
    samples: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    deadline = time.perf_counter() + seconds
    for finished in progress(range(ROUNDS[1]), "training", "round"):
        if finished >= ROUNDS[0] and time.perf_counter() > deadline:
            break
        for name in order:
            samples[name].append(steps[name].seconds())
        order.reverse()
    return samples


def summarise(
    network: Network, devices: int, samples: dict[str, list[float]], columns: dict[str, dict]
) -> Iterator[dict]:
    """A row per variant. `speed_up`: how many times plain's speed; batches are per device."""
    for name, times in samples.items():
        row = network.describe() | {"devices": devices, "variant": name, "rounds": len(times)}
        row |= zip(("ms_20", "ms", "ms_80"), (1e3 * q for q in quantiles(times)), strict=True)
        ratios = [plain / own for plain, own in zip(samples[PLAIN], times, strict=True)]
        row |= zip(("speed_up_20", "speed_up", "speed_up_80"), quantiles(ratios), strict=True)
        yield row | {"steps_per_s": 1e3 / row["ms"]} | columns[name]
