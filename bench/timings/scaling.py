"""Bandwidth by size: which size it takes to be bound by memory, and who is."""

from __future__ import annotations

import itertools

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.charts import COLOURS, GRID, INK, LABELS
from bench.results import significant
from bench.timings import tensors
from bench.timings.run import COPY

MOST_PANELS = 3
FEWEST_SIZES = 3
DRAWN = ("copy", "torch", "torch_without_cudnn", "compile", "triton", "fastreg")  # the last on top
Series = tuple[str, str, str, str]  # operator, mode, dtype, layout


def series(rows: list[dict]) -> dict[Series, list[dict]]:
    """The operators and modes with the most sizes, at least three; an operator's best alone."""
    found: dict[Series, list[dict]] = {}
    for row in rows:
        found.setdefault((row["op"], row["mode"], row["dtype"], row["layout"]), []).append(row)
    ranked = sorted(found.items(), key=lambda item: (-len(_sizes(item[1])), item[0][1] != "both"))
    best: dict[str, tuple[Series, list[dict]]] = {}
    for which, own in ranked:
        if len(_sizes(own)) >= FEWEST_SIZES:
            best.setdefault(which[0], (which, own))
    return dict(itertools.islice(best.values(), MOST_PANELS))


def _sizes(rows: list[dict]) -> set[int]:
    return {tensors.size(row) for row in rows}


def draw(figure: SubFigure, rows: list[dict]) -> None:
    """A panel per series, a line per provider."""
    found = series(rows)
    if not found:
        return
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    panels[0].set_ylabel("GB/s of the bytes that must be moved")
    for ax, ((op, mode, dtype, layout), own) in zip(panels, found.items(), strict=True):
        _panel(ax, own)
        layout = ", channels-last" * (layout == "channels_last")
        name = f"{op.replace('_', ' ')}, {tensors.MODES.get(mode, mode)}, {tensors.DTYPES[dtype]}{layout}"
        ax.set_title(name, color=INK)
    figure.supxlabel("size of the input", fontsize=9.5)


def _panel(ax: Axes, rows: list[dict]) -> None:
    for name in DRAWN:
        best: dict[int, dict] = {}
        for row in (row for row in rows if row["provider"] == name):
            if tensors.size(row) not in best or row["us"] < best[tensors.size(row)]["us"]:
                best[tensors.size(row)] = row
        if not best:
            continue
        sizes = sorted(best)
        speeds = [best[size]["gb_per_s"] for size in sizes]
        style = {"linestyle": (0, (3, 2))} if name == COPY else {"marker": "o", "markersize": 4}
        ax.plot(sizes, speeds, color=COLOURS[name], linewidth=1.8, label=LABELS.get(name, name), **style)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(LogLocator(base=2, numticks=6))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tensors.with_unit(x)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: significant(y, 1)))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    ax.legend(frameon=False, fontsize=8.5)
    ax.tick_params(length=0)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
