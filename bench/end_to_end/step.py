"""A training step of a variant of a network."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import fastreg
from bench.end_to_end.networks import Network

Wrap = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Variant:
    """fused: where it is converted. patched: torch's own operators are computed by fastreg's while it runs."""

    converted: bool = False
    compiled: bool = False
    fused: bool = True
    patched: bool = False


VARIANTS = {
    "plain": Variant(),
    "converted": Variant(converted=True),
    "compiled": Variant(compiled=True),
    "converted, compiled": Variant(converted=True, compiled=True),
}
if hasattr(fastreg, "patch_torch"):
    VARIANTS["patched"] = Variant(patched=True)


class Step:
    """Called, it does forward, backward and update. wrap: what comes around the model before it is compiled."""

    def __init__(self, network: Network, model: nn.Module, variant: Variant, device: torch.device, wrap: Wrap):
        model = model.to(device, memory_format=torch.channels_last if network.channels_last else torch.preserve_format)
        model = wrap(fastreg.convert(model, fuse=variant.fused) if variant.converted else model)
        self.network, self.device = network, device
        self.model = torch.compile(model) if variant.compiled else model
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.x, self.y = network.samples(device)
        self.settings = fastreg.patch_torch if variant.patched else contextlib.nullcontext

    def gradients(self) -> None:
        """Forward and backward."""
        mixed = self.network.dtype != torch.float32
        with torch.autocast(self.device.type, self.network.dtype) if mixed else contextlib.nullcontext():
            loss = self.network.loss(self.model(self.x), self.y)
        loss.backward()

    def update(self) -> None:
        """The optimiser's part. No gradient is left, so that each step begins with the same memory."""
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def __call__(self) -> None:
        with self.settings():
            self.gradients()
            self.update()

    def seconds(self, part: Callable[[], None] | None = None) -> float:
        """Of one step, or of a part of it; patching is no part of that."""
        with self.settings():
            self._synchronise()
            begin = time.perf_counter()
            (part or self)()
            self._synchronise()
            return time.perf_counter() - begin

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
