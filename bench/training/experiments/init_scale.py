"""How well batch norm makes up for initial weights that are too large or too small: 16 scales from 1 to 1e-4."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import numpy as np
from matplotlib.figure import Figure
from torch import nn
from torch.optim import SGD

from bench.charts import COLOURS, INK
from bench.training import charts, data
from bench.training.experiments.experiment import Experiment
from bench.training.loop import FASTREG, TORCH, Recipe, Task, train
from bench.training.networks import mlp, normal_weights

SCALES = np.logspace(0, -4, num=16)
SAMPLES = 1000
HIDDEN = (100, 100, 100, 100, 100)


def recipes(features: int, scales=SCALES) -> dict[str, Recipe]:
    """Weights from N(0, scale); five hidden layers of 100; SGD 0.01, batch 100."""

    def network(layers: ModuleType, scale: float, batch_norm: bool) -> nn.Module:
        def hidden(width: int) -> list[nn.Module]:
            return [layers.BatchNorm1d(width), nn.ReLU()] if batch_norm else [nn.ReLU()]

        return normal_weights(mlp((features, *HIDDEN, 10), hidden), scale)

    found = {}
    for scale in scales:
        common = {"optimiser": partial(SGD, lr=0.01), "batch": 100}
        found[name(scale, True)] = Recipe(partial(network, scale=scale, batch_norm=True), **common)
        found[name(scale, False)] = Recipe(partial(network, scale=scale, batch_norm=False), **common, shared=True)
    return found


def name(scale: float, batch_norm: bool) -> str:
    return f"scale {scale:.2g}, {'batch norm' if batch_norm else 'without'}"


def _run(task: Task) -> Iterator[list[dict]]:
    return train(recipes(task.data.features), task, {"train": data.first(task.data.train, SAMPLES)}, losses=False)


def _chart(rows: list[dict]) -> Figure:
    figure = Figure(figsize=(12, 9.5), layout="constrained")
    grid = figure.subplots(4, 4, sharex=True, sharey=True)
    for ax, scale in zip(grid.flat, SCALES, strict=True):
        lines = []
        for layers, colour in COLOURS.items():
            values = charts.by_epoch(rows, "train_accuracy", variant=name(scale, True), layers=layers)
            lines.append(charts.Line(values, colour, wide=layers == TORCH.name))
        lines.append(charts.Line(charts.by_epoch(rows, "train_accuracy", variant=name(scale, False)), INK))
        charts.draw(ax, lines, "train_accuracy")
        charts.frame(ax, f"N(0, {scale:.2g})")
    entries = {"without": INK, "batch norm, PyTorch": COLOURS[TORCH.name], "batch norm, fastreg": COLOURS[FASTREG.name]}
    charts.legend(grid[0, 0], entries)
    return figure


INIT_SCALE = Experiment(
    title="Training accuracy by the scale of the initial weights, with and without batch norm",
    data="mnist",
    epochs=20,
    train=_run,
    chart=_chart,
)
