"""Batch norm in a small network: 784-32-32-10, with and without it."""

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


def recipes(features: int) -> dict[str, Recipe]:
    def network(layers: ModuleType, batch_norm: bool) -> nn.Sequential:
        def hidden(width: int) -> list[nn.Module]:
            return [layers.BatchNorm1d(width), nn.ReLU()] if batch_norm else [nn.ReLU()]

        return mlp((features, 32, 32, 10), hidden)

    common = {"optimiser": partial(Adam, lr=0.01), "batch": 32, "drop_last": True}
    return {
        "batch norm": Recipe(partial(network, batch_norm=True), **common),
        "without": Recipe(partial(network, batch_norm=False), **common, shared=True),
    }


def _run(task: Task) -> Iterator[list[dict]]:
    return train(recipes(task.data.features), task)


BATCH_NORM = Experiment(
    title="A small network with and without batch norm",
    data="mnist",
    epochs=10,
    train=_run,
    chart=partial(charts.compare, columns=("train_loss", "test_loss", "train_accuracy", "test_accuracy")),
)
