"""Roofline: time by the bytes that have to be moved; what is bound by memory lies on the line of the copy."""

from __future__ import annotations

import statistics

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.charts import COLOURS, GRID, INK, LABELS
from bench.timings.run import COPY
from bench.timings.tensors import with_unit

MODE = "both"
DRAWN = ("torch", "compile", "triton", "apex", "inplace_abn", "fastreg")  # the last on top


def draw(ax: Axes, rows: list[dict]) -> None:
    """A point per case and provider; the line is a copy that moves as many bytes, measured in the same run."""
    rows = [row for row in rows if row["mode"] == MODE]
    for name in DRAWN:
        own = [row for row in rows if row["provider"] == name]
        if own:
            marks = {"s": 26, "alpha": 0.75, "linewidths": 0, "color": COLOURS[name], "label": LABELS.get(name, name)}
            ax.scatter([row["bytes"] for row in own], [row["us"] for row in own], **marks, zorder=3)
    copies = copy_times(rows)
    if copies:
        ax.plot(*zip(*copies, strict=True), color=COLOURS[COPY], linewidth=1.5, zorder=2, label=LABELS[COPY])
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(LogLocator(base=2, numticks=9))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: with_unit(x)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f} us" if y < 1e4 else f"{y / 1e3:,.0f} ms"))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    ax.set_title("Time by the bytes that must be moved: forward + backward", color=INK)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, loc="upper left", handletextpad=0.1)
    ax.tick_params(length=0)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)


def copy_times(rows: list[dict]) -> list[tuple[int, float]]:
    """(bytes, microseconds), by size, the median where several copies moved as many."""
    times: dict[int, list[float]] = {}
    for row in rows:
        if row["provider"] == COPY:
            times.setdefault(row["bytes"], []).append(row["us"])
    return [(size, statistics.median(own)) for size, own in sorted(times.items())]
