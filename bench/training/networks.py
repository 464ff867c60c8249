"""The networks: fully connected, their dropout and batch norm from the layers that are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import ModuleType

from torch import Tensor, nn


def mlp(widths: Sequence[int], hidden: Callable[[int], list[nn.Module]]) -> nn.Sequential:
    """Linear layers from width to width; hidden(width) is what follows each but the last."""
    modules = []
    for inputs, outputs in pairwise(widths[:-1]):
        modules += [nn.Linear(inputs, outputs), *hidden(outputs)]
    return nn.Sequential(*modules, nn.Linear(*widths[-2:]))


def normal_weights(network: nn.Module, deviation: float | None = None) -> nn.Module:
    """Weights from N(0, deviation), by default from N(0, sqrt(2 / inputs)) (He et al. 2015); biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=deviation or math.sqrt(2 / module.in_features))
            nn.init.zeros_(module.bias)
    return network


class ThreeLevelDropout(nn.Module):
    """The mean of two dropouts of the same input: each element times 0, 1/2 or 1, over 1 - p.

    The three have the probabilities p^2, 2p(1 - p) and (1 - p)^2, so the expectation is the input, as dropout's is,
    and the variance is half of dropout's."""

    def __init__(self, layers: ModuleType, p: float):
        super().__init__()
        self.dropout = layers.Dropout(p)

    def forward(self, input: Tensor) -> Tensor:
        return (self.dropout(input) + self.dropout(input)) / 2 if self.training else input
