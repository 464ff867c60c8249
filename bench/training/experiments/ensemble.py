"""Dropout as an ensemble in one network: against one network without it, and the average of five such networks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

from torch import nn
from torch.optim import Adam

from bench.training import charts, data
from bench.training.experiments.experiment import Experiment
from bench.training.loop import Recipe, Task, train
from bench.training.networks import mlp

SAMPLES = 500  # few enough to overfit
MEMBERS = 5
HIDDEN = (100, 100)
P = 0.5


def recipes(features: int) -> dict[str, Recipe]:
    def network(layers: ModuleType, p: float | None) -> nn.Sequential:
        def hidden(width: int) -> list[nn.Module]:
            return [nn.ReLU(), layers.Dropout(p)] if p else [nn.ReLU()]

        return mlp((features, *HIDDEN, 10), hidden)

    plain = partial(network, p=None)
    common = {"optimiser": partial(Adam, lr=1e-3), "batch": 32}
    return {
        f"dropout {P}": Recipe(partial(network, p=P), **common),
        "one network": Recipe(plain, **common, shared=True),
        f"average of {MEMBERS}": Recipe(plain, **common, members=MEMBERS, shared=True),
    }


def _run(task: Task) -> Iterator[list[dict]]:
    splits = {"train": data.first(task.data.train, SAMPLES), "test": task.data.test}
    return train(recipes(task.data.features), task, splits)


ENSEMBLE = Experiment(
    title="One network with dropout against the average of five without",
    data="mnist",
    epochs=50,
    train=_run,
    chart=partial(charts.compare, columns=("train_loss", "test_loss", "test_accuracy")),
)
