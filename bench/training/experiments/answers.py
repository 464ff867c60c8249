"""Sentences about an experiment's rows: last epochs, means over the seeds and whose layers they were."""

from __future__ import annotations

import math
from statistics import fmean, stdev

from bench.training import report

TEST = "test_accuracy"


def last(rows: list[dict], variant: str, column: str, epoch: int | None = None) -> list[float]:
    """The values at the end of each run of the variant, or at an epoch."""
    runs = [own for (name, *_), own in report.runs(rows).items() if name == variant]
    return [own[-1 if epoch is None else min(epoch, len(own)) - 1][column] for own in runs]


def mean(rows: list[dict], variant: str, column: str = TEST, epoch: int | None = None) -> float:
    """Over the runs."""
    return fmean(last(rows, variant, column, epoch))


def gap(rows: list[dict], variant: str, epoch: int | None = None) -> str:
    """Training accuracy less test accuracy, in points."""
    return f"{100 * _gap(rows, variant, epoch):.1f}"


def gap_less(rows: list[dict], variant: str, other: str) -> str:
    """How many points less the gap of the first is than that of the other."""
    return f"{100 * (_gap(rows, other) - _gap(rows, variant)):.1f}"


def percent(rows: list[dict], variant: str, column: str = TEST) -> str:
    """Mean ± standard deviation."""
    values = last(rows, variant, column)
    spread = f" ± {100 * _deviation(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}%"


def verdict(rows: list[dict], first: tuple[str, str], second: tuple[str, str]) -> str:
    """Whether the means of two (variant, column) differ beyond twice the standard error of their difference."""
    samples = [last(rows, *each) for each in (first, second)]
    if min(map(len, samples)) < 2:
        return "of one run each, which tells nothing"
    error = math.sqrt(sum(_deviation(values) ** 2 / len(values) for values in samples))
    difference = fmean(samples[1]) - fmean(samples[0])
    if abs(difference) <= 2 * error:
        return "no more apart than chance puts them"
    return f"{abs(100 * difference):.1f} points {'more' if difference > 0 else 'less'}, which is more than chance"


def _gap(rows: list[dict], variant: str, epoch: int | None = None) -> float:
    return mean(rows, variant, "train_accuracy", epoch) - mean(rows, variant, TEST, epoch)


def _deviation(values: list[float]) -> float:
    return stdev(values) if all(map(math.isfinite, values)) else math.nan
