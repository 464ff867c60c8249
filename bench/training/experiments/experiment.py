"""What an experiment is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from bench.training import report
from bench.training.loop import Task


@dataclass(frozen=True)
class Experiment:
    """What it is called, what on and how long it trains, and what is made of its rows."""

    title: str
    data: str  # digits, mnist or fashion-mnist
    epochs: int
    train: Callable[[Task], Iterator[list[dict]]]
    chart: Callable[[list[dict]], Figure]
    report: Callable[[list[dict]], str] = report.table
    published: dict | None = None  # what others got, for the JSON
    seeds: int = 3
    answer: Callable[[list[dict]], str] | None = None  # to the question that it asks, in a sentence
