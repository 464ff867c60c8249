"""The data sets as tensors: scikit-learn's digits, which ship with it, and MNIST and Fashion-MNIST from IDX files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from bench.data import bring, idx
from bench.data.sets import SETS

Split = tuple[Tensor, Tensor]  # inputs [N, features], labels [N]

DIGITS = "digits"
TITLES = {DIGITS: "scikit-learn's digits"} | {name: dataset.title for name, dataset in SETS.items()}


@dataclass(frozen=True)
class Data:
    """A data set, and the one that it stands in for, if any."""

    name: str
    train: Split
    test: Split
    stands_in_for: str | None = None

    @property
    def features(self) -> int:
        return self.train[0].shape[1]

    def describe(self) -> str:
        """As the output and the charts call it."""
        return describe(self.name, self.stands_in_for)


def describe(name: str, stands_in_for: str | None) -> str:
    """On NAME; or in place of which other data set."""
    if stands_in_for:
        return f"On {TITLES[name]} in place of {TITLES[stands_in_for]}, which was not there"
    return f"On {TITLES[name]}"


def load(wanted: str, folder: Path | None, device: torch.device) -> Data:
    """`digits`, `mnist` or `fashion-mnist`; the latter from the folder, or torchvision's root, or without one from
    where they usually are. Where they are not, the digits stand in for them.

    Raises:
        ValueError: a file is missing from the folder, damaged, or not the published one.
    """
    if wanted == DIGITS:
        return digits(device)
    dataset = SETS[wanted]
    if folder is None:
        found = bring.find(dataset)
        if found is None:
            return digits(device, stands_in_for=wanted)
        contents = found[1]
    else:
        try:
            contents = idx.read(bring.within(folder, dataset), dataset)
        except (ValueError, OSError) as error:
            raise ValueError(f"--data {error}") from None
    arrays = (idx.parse(content, name) for name, content in contents.items())
    train_x, train_y, test_x, test_y = (torch.tensor(array, device=device) for array in arrays)
    train_x, test_x = (x.flatten(1).float() / 255 for x in (train_x, test_x))
    return Data(wanted, (train_x, train_y.long()), (test_x, test_y.long()))


def digits(device: torch.device, stands_in_for: str | None = None) -> Data:
    """1437 and 360 samples of 64 features: always the same split.

    Standardised by the training split; pixels that are constant there are only centred."""
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels, labels, test_size=0.2, stratify=labels, random_state=0)
    train_x, test_x = (torch.tensor(x, dtype=torch.float32, device=device) for x in split[:2])
    train_y, test_y = (torch.tensor(y, device=device) for y in split[2:])
    deviation, mean = torch.std_mean(train_x, dim=0)
    deviation[deviation == 0] = 1
    train_x, test_x = ((x - mean) / deviation for x in (train_x, test_x))
    return Data(DIGITS, (train_x, train_y), (test_x, test_y), stands_in_for)


def first(split: Split, count: int) -> Split:
    """Its first samples; the data sets are in random order."""
    x, y = split
    return x[:count], y[:count]
