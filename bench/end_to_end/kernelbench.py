"""KernelBench's problems (Ouyang et al. 2025) that have batch norm or dropout, written anew from what they compute.

A name is a level and a number. On a GPU they have KernelBench's sizes, on the CPU fewer samples and features, so that a
step takes a second at most. Beside its forward pass a step here has a backward one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bench.end_to_end.networks import Network


class Scaled(nn.Module):
    """Times a parameter: one per feature, or one for all."""

    def __init__(self, features: int = 1):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(features))

    def forward(self, input: Tensor) -> Tensor:
        return input * self.scale


class Times(nn.Module):
    """Times a constant."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, input: Tensor) -> Tensor:
        return input * self.factor


class Centred(nn.Module):
    """Less the mean over depth, height and width."""

    def forward(self, input: Tensor) -> Tensor:
        return input - input.mean((2, 3, 4), keepdim=True)


class ActivatedNorm(nn.Module):
    """Convolution, x tanh(softplus(x)), batch norm."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128)

    def forward(self, input: Tensor) -> Tensor:
        x = self.convolution(input)
        return self.norm(torch.tanh(nn.functional.softplus(x)) * x)


class ClampedDropout(nn.Module):
    """Convolution, group norm, minimum with 0, clamp to [0, 1], dropout."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.dropout = nn.Conv3d(3, 16, 3), nn.GroupNorm(8, 16), nn.Dropout(0.2)

    def forward(self, input: Tensor) -> Tensor:
        x = self.norm(self.convolution(input))
        x = torch.minimum(x, x.new_zeros(()))
        return self.dropout(x.clamp(0.0, 1.0))


class BiasedSwish(nn.Module):
    """Linear layer, batch norm, a bias, division by 1, x sigmoid(x)."""

    def __init__(self, features: int):
        super().__init__()
        self.linear, self.norm = nn.Linear(features, features), nn.BatchNorm1d(features)
        self.bias, self.divisor = nn.Parameter(torch.randn(1)), 1.0

    def forward(self, input: Tensor) -> Tensor:
        x = (self.norm(self.linear(input)) + self.bias) / self.divisor
        return x * x.sigmoid()


def _transposed3d(inputs: int, outputs: int, size: int, *after: nn.Module, stride: int = 1, padding: int = 0):
    return nn.Sequential(nn.ConvTranspose3d(inputs, outputs, size, stride, padding), *after)


def _linear(features: int, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, features), *after)


@dataclass(frozen=True)
class Problem:
    """build: of the number of features, where that is the input's only size. full, small: batch and input's sizes, as
    KernelBench has them, and on the CPU."""

    build: Callable[[int], nn.Module]
    full: tuple[int, ...]
    small: tuple[int, ...]


PROBLEMS = {
    "1-33": Problem(lambda _: nn.BatchNorm2d(64), (64, 64, 512, 512), (16, 64, 128, 128)),
    "2-11": Problem(
        lambda _: nn.Sequential(
            nn.ConvTranspose2d(64, 128, 5, padding=1),
            nn.BatchNorm2d(128),
            nn.Tanh(),
            nn.MaxPool2d(2),
            nn.GroupNorm(8, 128),
        ),
        (512, 64, 32, 32),
        (16, 64, 32, 32),
    ),
    "2-15": Problem(
        lambda _: _transposed3d(16, 32, 3, nn.BatchNorm3d(32), Centred(), stride=2, padding=1),
        (16, 16, 16, 32, 32),
        (4, 16, 16, 32, 32),
    ),
    "2-33": Problem(lambda n: _linear(n, Scaled(n), nn.BatchNorm1d(n)), (1024, 8192), (1024, 1024)),
    "2-39": Problem(lambda n: _linear(n, Scaled(n), nn.BatchNorm1d(n)), (16384, 4096), (16384, 256)),
    "2-41": Problem(lambda n: _linear(n, nn.BatchNorm1d(n), nn.GELU(), nn.ReLU()), (16384, 4096), (16384, 256)),
    "2-52": Problem(lambda _: ActivatedNorm(), (64, 64, 128, 128), (4, 64, 64, 64)),
    "2-66": Problem(lambda n: _linear(n, nn.Dropout(0.2), nn.Softmax(1)), (128, 16384), (128, 2048)),
    "2-72": Problem(
        lambda _: _transposed3d(3, 16, 3, nn.BatchNorm3d(16), nn.AvgPool3d(2), nn.AvgPool3d(2), stride=2, padding=1),
        (64, 3, 32, 32, 32),
        (4, 3, 32, 32, 32),
    ),
    "2-73": Problem(
        lambda _: nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), Times(2.0)),
        (128, 8, 128, 128),
        (8, 8, 128, 128),
    ),
    "2-77": Problem(
        lambda _: _transposed3d(64, 128, 5, Times(2.0), nn.BatchNorm3d(128), nn.AdaptiveAvgPool3d(1)),
        (16, 64, 16, 32, 32),
        (2, 64, 4, 12, 12),
    ),
    "2-83": Problem(lambda _: ClampedDropout(), (128, 3, 16, 64, 64), (8, 3, 16, 64, 64)),
    "2-84": Problem(lambda n: _linear(n, nn.BatchNorm1d(n), Scaled(), nn.Softmax(1)), (1024, 8192), (1024, 1024)),
    "2-97": Problem(BiasedSwish, (1024, 8192), (1024, 1024)),
}


def _build(name: str, features: int) -> nn.Module:
    return PROBLEMS[name].build(features)


def mean_square(output: Tensor, _: Tensor) -> Tensor:
    """A loss of any output."""
    return output.float().square().mean()


def problems(device: torch.device, quick: bool = False) -> list[Network]:
    """As networks to train, in fp32. quick: the two smallest."""
    found = []
    for name, problem in PROBLEMS.items():
        batch, *sizes = problem.small if device.type == "cpu" else problem.full
        build = partial(_build, name, sizes[0])
        found.append(Network(name, "KernelBench", build, batch, tuple(sizes), classes=1, loss=mean_square))
    return [network for network in found if network.name in ("2-33", "2-66")] if quick else found
