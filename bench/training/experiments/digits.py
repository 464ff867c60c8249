"""Dropout and batch norm on scikit-learn's digits: 64-100-100-100-100-10."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

from torch import nn
from torch.optim import Adam

from bench.training import charts
from bench.training.experiments.experiment import Experiment
from bench.training.loop import Recipe, Task, train
from bench.training.networks import mlp

HIDDEN = (100, 100, 100, 100)
P = 0.5
COLUMNS = ("train_loss", "test_loss", "test_accuracy")


def network(layers: ModuleType, batch_norm: bool) -> nn.Sequential:
    """Dropout after each hidden layer's ReLU, batch norm before it."""

    def hidden(width: int) -> list[nn.Module]:
        norm = [layers.BatchNorm1d(width)] if batch_norm else []
        return [nn.ReLU(), *norm, layers.Dropout(P)]

    return mlp((64, *HIDDEN, 10), hidden)


def recipe(batch_norm: bool) -> Recipe:
    return Recipe(partial(network, batch_norm=batch_norm), partial(Adam, lr=1e-3), batch=32)


def _run(variant: str, batch_norm: bool, task: Task) -> Iterator[list[dict]]:
    return train({variant: recipe(batch_norm)}, task)


DROPOUT = Experiment(
    title="Four dropouts of 0.5",
    data="digits",
    epochs=100,
    train=partial(_run, "dropout 0.5", False),
    chart=partial(charts.compare, columns=COLUMNS),
)
BATCH_NORM = Experiment(
    title="Four dropouts of 0.5, batch norm before each",
    data="digits",
    epochs=100,
    train=partial(_run, "batch norm, dropout 0.5", True),
    chart=partial(charts.compare, columns=COLUMNS),
)
