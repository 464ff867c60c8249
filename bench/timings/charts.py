"""The charts of the timings, by what their files' names end in."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from bench.charts import STYLE, inscribe
from bench.timings import memory_chart, roofline, scaling, speed_chart


def speed(rows: list[dict], title: str, caption: str, path: Path) -> None:
    """How many times the others' speed: a bar per case."""
    with matplotlib.rc_context(STYLE):
        figure = speed_chart.draw(rows)
        inscribe(figure, title, f"{speed_chart.NOTE}\n{caption}")
        figure.savefig(path)


def overview(rows: list[dict], title: str, caption: str, path: Path) -> None:
    """The roofline, memory kept for backward, and bandwidth by size."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 11.5), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=[6, 5], hspace=0.04)
        left, right = above.subplots(1, 2, width_ratios=[6, 5])
        roofline.draw(left, rows)
        memory_chart.draw(right, rows)
        scaling.draw(below, rows)
        inscribe(figure, title, caption)
        figure.savefig(path)


CHARTS = {"": speed, "-overview": overview}
