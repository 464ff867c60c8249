"""Dropout after two hidden layers of 256, as in Zhang et al., "Dive into Deep Learning", section Dropout, and the
questions that the book asks after it, each a study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import SGD

from bench.training import charts, report
from bench.training.experiments.experiment import Experiment
from bench.training.loop import Recipe, Task, train
from bench.training.networks import ThreeLevelDropout, normal_weights

PASSES = {"digits": 5, "fashion": 1}  # in an epoch: 30 batches of 256 on the digits, where one pass has 6
WEIGHT_DECAY = 1e-3
PUBLISHED = {"from scratch": 0.881, "concise": 0.873}
COLUMNS = ("train_loss", "train_accuracy", "test_accuracy")


@dataclass(frozen=True)
class Variant:
    """A network and how it is regularised."""

    p: tuple[float, float] | None = (0.2, 0.5)  # after the first and the second hidden layer; None: no dropout
    kind: str = "dropout"  # or three-level, or weights: those that read the hidden layers
    width: int = 256
    weight_decay: float = 0.0

    def network(self, layers: ModuleType, features: int) -> nn.Module:
        modules = [nn.Linear(features, self.width)]
        for outputs, p in zip((self.width, 10), self.p or (None, None), strict=True):
            modules.append(nn.ReLU())
            if p is not None and self.kind == "weights":
                modules.append(layers.DropConnectLinear(self.width, outputs, p=p))
                continue
            if p is not None:
                modules.append(ThreeLevelDropout(layers, p) if self.kind == "three-level" else layers.Dropout(p))
            modules.append(nn.Linear(self.width, outputs))
        return normal_weights(nn.Sequential(*modules), 0.01)

    def recipe(self, features: int, observe: Callable[[nn.Module], dict] | None = None) -> Recipe:
        optimiser = partial(SGD, lr=0.5, weight_decay=self.weight_decay)
        return Recipe(partial(self.network, features=features), optimiser, 256, shared=not self.p, observe=observe)


DROPPED, PLAIN = Variant(), Variant(p=None)
QUESTIONS: dict[str, tuple[str, dict[str, Variant]]] = {
    "swapped": (
        "The two probabilities swapped",
        {"0.2, 0.5": DROPPED, "0.5, 0.2": Variant(p=(0.5, 0.2))},
    ),
    "longer": (
        "Three times the epochs, with and without dropout",
        {"dropout": DROPPED, "no dropout": PLAIN},
    ),
    "variance": (
        "The activations' variance with and without dropout",
        {"dropout": DROPPED, "no dropout": PLAIN},
    ),
    "wider": (
        "Larger hidden layers",
        {
            f"{width}, {name}": replace(variant, width=width)
            for width in (256, 1024)
            for name, variant in (("dropout", DROPPED), ("none", PLAIN))
        },
    ),
    "weight-decay": (
        f"Weight decay {WEIGHT_DECAY} against dropout",
        {
            "neither": PLAIN,
            "dropout": DROPPED,
            "weight decay": replace(PLAIN, weight_decay=WEIGHT_DECAY),
            "both": replace(DROPPED, weight_decay=WEIGHT_DECAY),
        },
    ),
    "weights": (
        "Dropout on the weights (DropConnect)",
        {"activations": DROPPED, "weights": replace(DROPPED, kind="weights")},
    ),
    "three-level": (
        "Dropout by 0, 1/2 or 1",
        {"two levels": DROPPED, "three levels": replace(DROPPED, kind="three-level")},
    ),
}


def variances(network: nn.Sequential, x: Tensor) -> dict[str, float]:
    """Of what each hidden layer hands on in training, after its dropout if it has one, over samples and units."""
    found = []
    with torch.no_grad():
        for module in network.train():
            if isinstance(module, nn.Linear):
                found.append(x.var().item())
            x = module(x)
    return {f"hidden_{index}_variance": value for index, value in enumerate(found[1:], start=1)}


def _run(variants: dict[str, Variant], observed: bool, task: Task) -> Iterator[list[dict]]:
    observe = partial(variances, x=task.data.train[0][:1000]) if observed else None
    recipes = {name: variant.recipe(task.data.features, observe) for name, variant in variants.items()}
    return train(recipes, task, passes=PASSES[task.data.name])


def _report(rows: list[dict]) -> str:
    published = ", ".join(f"{value:.1%} {how}" for how, value in PUBLISHED.items())
    return f"{report.table(rows)}\npublished test accuracy on Fashion-MNIST, dropout 0.2, 0.5: {published}"


def _experiment(title: str, variants: dict[str, Variant], epochs: int = 10, columns: Sequence[str] = COLUMNS):
    def chart(rows: list[dict]) -> Figure:
        return charts.compare(rows, columns)

    observed = any(column.endswith("_variance") for column in columns)
    published = {"data": "fashion", "test_accuracy": PUBLISHED}
    return Experiment(title, "fashion", epochs, partial(_run, variants, observed), chart, _report, published)


DROPOUT = _experiment("Dropout 0.2 and 0.5 after two hidden layers of 256", {"dropout 0.2, 0.5": DROPPED})
STUDIES = {
    name: _experiment(
        title,
        variants,
        epochs=30 if name == "longer" else 10,
        columns=("hidden_1_variance", "hidden_2_variance", *COLUMNS[1:]) if name == "variance" else COLUMNS,
    )
    for name, (title, variants) in QUESTIONS.items()
}
