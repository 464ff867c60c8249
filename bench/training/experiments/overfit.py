"""300 samples for six hidden layers of 100: what dropout and weight decay do about overfitting."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

from matplotlib.figure import Figure
from torch import nn
from torch.optim import SGD

from bench.charts import COLOURS, INK
from bench.results import format_table
from bench.training import charts, data, report
from bench.training.experiments.experiment import Experiment
from bench.training.loop import FASTREG, TORCH, Recipe, Task, train
from bench.training.networks import mlp, normal_weights

SAMPLES = 300
HIDDEN = (100,) * 6
P = 0.15
WEIGHT_DECAY = 0.1
SCALINGS = {"no dropout": None, 'dropout, scaling "train"': "train", 'dropout, scaling "test"': "test"}
DECAYS = {"no weight decay": 0.0, "weight decay": WEIGHT_DECAY}


def recipes(features: int) -> dict[str, Recipe]:
    """He's initial weights; SGD 0.01, batch 100."""

    def network(layers: ModuleType, scaling: str | None) -> nn.Module:
        def hidden(width: int) -> list[nn.Module]:
            return [nn.ReLU(), layers.Dropout(P, scaling=scaling)] if scaling else [nn.ReLU()]

        return normal_weights(mlp((features, *HIDDEN, 10), hidden))

    return {
        f"{dropout}, {decayed}": Recipe(
            partial(network, scaling=scaling), partial(SGD, lr=0.01, weight_decay=decay), 100, shared=scaling is None
        )
        for decayed, decay in DECAYS.items()
        for dropout, scaling in SCALINGS.items()
    }


def gaps(rows: list[dict]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """(variant, layers) -> last epoch's train accuracy, test accuracy, and the gap between, means over the seeds."""
    found = {}
    for line in report.summarise(rows):
        train_accuracy, test_accuracy = line["train_accuracy"], line["test_accuracy"]
        found[line["variant"], line["layers"]] = train_accuracy, test_accuracy, train_accuracy - test_accuracy
    return found


def _run(task: Task) -> Iterator[list[dict]]:
    splits = {"train": data.first(task.data.train, SAMPLES), "test": task.data.test}
    return train(recipes(task.data.features), task, splits, losses=False)


def _report(rows: list[dict]) -> str:
    lines = [[*key, *(f"{value:.2%}" for value in values)] for key, values in gaps(rows).items()]
    header = ["network", "layers", "train accuracy", "test accuracy", "gap"]
    return f"{report.table(rows)}\n\n{format_table(header, lines, words=2)}"


def _chart(rows: list[dict]) -> Figure:
    figure = Figure(figsize=(12, 7), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    for line, decayed in zip(grid, DECAYS, strict=True):
        for ax, dropout in zip(line, SCALINGS, strict=True):
            _panel(ax, [row for row in rows if row["variant"] == f"{dropout}, {decayed}"])
            charts.frame(ax, f"{dropout}, {decayed}")
    return figure


def _panel(ax, rows: list[dict]) -> None:
    lines = []
    for layers in sorted(charts.unique(rows, "layers"), key=lambda name: name != TORCH.name):
        for column, colour in (("train", INK), ("test", COLOURS[FASTREG.name])):
            wide = layers == TORCH.name and len(charts.unique(rows, "layers")) > 1
            values = charts.by_epoch(rows, f"{column}_accuracy", layers=layers)
            lines.append(charts.Line(values, colour, column * (not wide), wide))
    charts.draw(ax, lines, "train_accuracy")


OVERFIT = Experiment(
    title=f"Overfitting 300 samples, dropout {P} and weight decay {WEIGHT_DECAY} against it",
    data="mnist",
    epochs=201,
    train=_run,
    chart=_chart,
    report=_report,
)
