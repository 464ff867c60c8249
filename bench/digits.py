"""The classic digits network on real data: scikit-learn's 8x8 digits."""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

WIDTHS = (64, 100, 100, 100, 100, 10)


def data(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Train inputs [1437, 64], train labels, test inputs [360, 64], test labels: always the same split.

    Standardised by the training split; pixels that are constant there are only centred."""
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels, labels, test_size=0.2, stratify=labels, random_state=0)
    train_x, test_x = (torch.tensor(x, dtype=torch.float32, device=device) for x in split[:2])
    train_y, test_y = (torch.tensor(y, device=device) for y in split[2:])
    deviation, mean = torch.std_mean(train_x, dim=0)
    deviation[deviation == 0] = 1
    return (train_x - mean) / deviation, train_y, (test_x - mean) / deviation, test_y


def network(layers: ModuleType) -> nn.Sequential:
    """64-100-100-100-100-10; Dropout and BatchNorm1d come from `layers`, everything else from torch.nn."""
    modules = []
    for inputs, outputs in pairwise(WIDTHS[:-1]):
        modules += [nn.Linear(inputs, outputs), nn.ReLU(), layers.BatchNorm1d(outputs), layers.Dropout(0.5)]
    return nn.Sequential(*modules, nn.Linear(*WIDTHS[-2:]))
