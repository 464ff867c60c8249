"""The experiments by name: each has its own file, or one with its kin."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import matplotlib
import torch

from bench.charts import STYLE, inscribe
from bench.part import Part
from bench.training import charts, data, loop, report
from bench.training.experiments import digits, ensemble, fashion, init_scale, mnist, overfit, search
from bench.training.experiments.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    "digits-dropout": digits.DROPOUT,
    "digits-batchnorm": digits.BATCH_NORM,
    "mnist-batchnorm": mnist.BATCH_NORM,
    "fashion-dropout": fashion.DROPOUT,
    "init-scale": init_scale.INIT_SCALE,
    "overfit": overfit.OVERFIT,
    "ensemble": ensemble.ENSEMBLE,
    "search": search.SEARCH,
}
STUDIES: dict[str, Experiment] = {f"fashion-dropout-{name}": study for name, study in fashion.STUDIES.items()}
ALL = EXPERIMENTS | STUDIES


@dataclass(frozen=True)
class Choice:
    """How to run an experiment."""

    device: torch.device
    layers: tuple[str, ...] = tuple(loop.PROVIDERS)
    seeds: int | None = None  # the experiment's own
    epochs: int | None = None  # the experiment's own
    folder: Path | None = None  # of the IDX files; None: where they usually are
    loaded: dict[str, data.Data] = field(default_factory=dict)  # what is loaded already

    def task(self, experiment: Experiment) -> loop.Task:
        """Raises ValueError where a file of the data is missing, damaged, or not the published one."""
        providers = tuple(loop.PROVIDERS[name] for name in self.layers)
        if experiment.data not in self.loaded:
            self.loaded[experiment.data] = data.load(experiment.data, self.folder, self.device)
        own = self.loaded[experiment.data]
        return loop.Task(own, providers, self.seeds or experiment.seeds, self.epochs or experiment.epochs)


def part(name: str, choice: Choice) -> Part:
    """The experiment `name`, or a study, ready to run; raises ValueError as Choice.task does."""
    experiment = ALL[name]
    task = choice.task(experiment)

    def tables(rows: list[dict]) -> str:
        answer = f"\n\n{experiment.title}: {experiment.answer(rows)}" if experiment.answer else ""
        return f"{task.data.describe()}\n{experiment.report(rows)}{answer}"

    about = {
        "experiment": name,
        "data": {
            "name": task.data.name,
            "stands_in_for": task.data.stands_in_for,
            "train_samples": len(task.data.train[0]),
            "test_samples": len(task.data.test[0]),
        },
    }
    if experiment.published:
        about["published"] = experiment.published
    write = partial(report.write, about=about, answer=experiment.answer)
    return Part(
        experiment.title,
        partial(experiment.train, task),
        tables,
        {"": partial(draw, name, task.data.describe())},
        write,
    )


def draw(name: str, data: str, rows: list[dict], title: str, caption: str, path: Path) -> None:
    """The chart of an experiment, or a study, on the data described."""
    with matplotlib.rc_context(STYLE):
        figure = ALL[name].chart(rows)
        inscribe(figure, title, f"{data}.\n{charts.note(rows)}\n{caption}")
        charts.separate_labels(figure)
        figure.savefig(path)
