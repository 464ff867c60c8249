"""What is trained, with what inputs: by device, so that a step takes seconds at most."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from bench.end_to_end.residual import residual_network


@dataclass(frozen=True)
class Network:
    """build: makes it, with random weights; can be pickled. source: whose code it is. input: of one sample.

    dtype: of the activations; on GPUs autocast's, with parameters in fp32."""

    name: str
    source: str
    build: Callable[[], nn.Module]
    batch: int
    input: tuple[int, ...]
    classes: int
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = nn.functional.cross_entropy  # of output and labels

    def describe(self) -> dict:
        """The columns that identify it in the result files."""
        return {
            "network": self.name,
            "source": self.source,
            "batch": self.batch,
            "input": "x".join(map(str, self.input)),
            "dtype": str(self.dtype).removeprefix("torch."),
            "layout": "channels_last" if self.channels_last else "contiguous",
        }

    def samples(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch of noise, and labels."""
        x = torch.randn(self.batch, *self.input, device=device)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, torch.randint(self.classes, (self.batch,), device=device)


def mlp(width: int, inputs: int, classes: int = 10) -> nn.Sequential:
    """Three hidden layers, each with batch norm, relu and dropout."""
    layers = []
    for features in (inputs, width, width):
        layers += [nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def _resnet50() -> tuple[str, Callable[[], nn.Module]]:
    if importlib.util.find_spec("torchvision"):
        from torchvision.models import resnet50

        return "torchvision", resnet50
    return "bench", residual_network


NAMES = ("resnet50", "mlp")


def networks(device: torch.device, quick: bool = False) -> list[Network]:
    """ResNet-50, torchvision's where that is installed, and an MLP."""
    if quick:
        tiny = Network("resnet50", "bench, tiny", partial(residual_network, (1, 1), 8, 10), 2, (3, 32, 32), 10)
        return [tiny, Network("mlp", "bench", partial(mlp, 32, 16), 8, (16,), 10)]
    resnet50 = ("resnet50", *_resnet50())
    if device.type == "cpu":
        return [
            Network(*resnet50, batch=8, input=(3, 224, 224), classes=1000),
            Network("mlp", "bench", partial(mlp, 1024, 784), batch=256, input=(784,), classes=10),
        ]
    bf16 = {"dtype": torch.bfloat16}
    return [
        Network(*resnet50, batch=256, input=(3, 224, 224), classes=1000, channels_last=True, **bf16),
        Network("mlp", "bench", partial(mlp, 4096, 784), batch=8192, input=(784,), classes=10, **bf16),
    ]
