"""Random search of learning rate and weight decay: short runs on a validation split, the test data used once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from statistics import fmean
from types import ModuleType

import numpy as np
from matplotlib.figure import Figure
from torch import nn
from torch.optim import SGD

from bench.charts import COLOURS, MUTED
from bench.results import format_table
from bench.training import charts, data, report
from bench.training.experiments.experiment import Experiment
from bench.training.loop import FASTREG, TORCH, Recipe, Task, train
from bench.training.networks import mlp, normal_weights

TRIALS = 100
SHOWN = 20
SAMPLES = 500
VALIDATION = 0.2
LEARNING_RATES = (1e-6, 1e-2)
WEIGHT_DECAYS = (1e-8, 1e-4)
HIDDEN = (100, 100, 100)
P = 0.15
BEST = "best"


def trials(count: int) -> dict[str, dict[str, float]]:
    """Log-uniform draws, always the same."""
    generator = np.random.default_rng(0)
    ranges = {"learning_rate": LEARNING_RATES, "weight_decay": WEIGHT_DECAYS}
    return {
        f"trial {index}": {key: float(10 ** generator.uniform(*np.log10(limits))) for key, limits in ranges.items()}
        for index in range(1, count + 1)
    }


def recipe(features: int, learning_rate: float, weight_decay: float) -> Recipe:
    """Three hidden layers of 100 with batch norm and dropout; He's initial weights; SGD, batch 100."""

    def network(layers: ModuleType) -> nn.Module:
        def hidden(width: int) -> list[nn.Module]:
            return [layers.BatchNorm1d(width), nn.ReLU(), layers.Dropout(P)]

        return normal_weights(mlp((features, *HIDDEN, 10), hidden))

    return Recipe(network, partial(SGD, lr=learning_rate, weight_decay=weight_decay), 100)


def ranking(rows: list[dict]) -> list[str]:
    """The trials by their last validation accuracy, mean over whose layers they were, the best first."""
    found: dict[str, list[float]] = {}
    for (variant, *_), own in report.runs(rows).items():
        if variant != BEST:
            found.setdefault(variant, []).append(own[-1]["validation_accuracy"])
    return sorted(found, key=lambda variant: -fmean(found[variant]))


def _run(task: Task) -> Iterator[list[dict]]:
    samples = data.first(task.data.train, SAMPLES)
    held_out = int(VALIDATION * SAMPLES)
    splits = {
        "train": data.first(samples, SAMPLES - held_out),
        "validation": tuple(each[SAMPLES - held_out :] for each in samples),
    }
    drawn = trials(TRIALS)
    recipes = {name: recipe(task.data.features, **values) for name, values in drawn.items()}
    rows = []
    for batch in train(recipes, dataclasses.replace(task, seeds=1), splits, losses=False, name="search"):
        batch = [row | drawn[row["variant"]] for row in batch]
        rows += batch
        yield batch
    best = ranking(rows)[0]
    # One epoch of as many passes: the test data are looked at once.
    final, splits = dataclasses.replace(task, epochs=1), {"train": samples, "test": task.data.test}
    for batch in train({BEST: recipes[best]}, final, splits, passes=task.epochs, name="best again"):
        yield [row | drawn[best] for row in batch]


def _report(rows: list[dict]) -> str:
    lines = []
    for variant in ranking(rows)[:5]:
        ends = [own[-1] for (name, *_), own in report.runs(rows).items() if name == variant]
        found = [f"{row['layers']} {row['validation_accuracy']:.1%}" for row in ends]
        lines.append([f"{ends[0]['learning_rate']:.3g}", f"{ends[0]['weight_decay']:.3g}", ", ".join(found)])
    text = "best five:\n" + format_table(["learning rate", "weight decay", "validation accuracy"], lines)
    best = [row for row in rows if row["variant"] == BEST]
    return f"{text}\n\nthe best, trained again on all {SAMPLES} samples:\n{report.table(best)}" if best else text


def _chart(rows: list[dict]) -> Figure:
    figure = Figure(figsize=(12, 9.5), layout="constrained")
    grid = figure.subplots(4, SHOWN // 4, sharex=True, sharey=True)
    for ax, variant in zip(grid.flat, ranking(rows), strict=False):
        own = [row for row in rows if row["variant"] == variant]
        lines = [charts.Line(charts.by_epoch(own, "train_accuracy", layers=own[0]["layers"]), MUTED)]
        for layers, colour in COLOURS.items():
            values = charts.by_epoch(own, "validation_accuracy", layers=layers)
            lines.append(charts.Line(values, colour, wide=layers == TORCH.name))
        charts.draw(ax, lines, "validation_accuracy")
        charts.frame(ax, f"rate {own[0]['learning_rate']:.2g}, decay {own[0]['weight_decay']:.1g}")
    entries = {
        "train": MUTED,
        "validation, PyTorch": COLOURS[TORCH.name],
        "validation, fastreg": COLOURS[FASTREG.name],
    }
    charts.legend(grid[0, 0], entries)
    return figure


SEARCH = Experiment(
    title=f"Random search of learning rate and weight decay: the best {SHOWN} of {TRIALS}",
    data="mnist",
    epochs=50,
    train=_run,
    chart=_chart,
    report=_report,
)
