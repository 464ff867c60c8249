"""How many times the others' speed."""

from __future__ import annotations

from collections.abc import Collection

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from bench.charts import COLOURS, GRID, INK
from bench.results import significant
from bench.timings import tensors
from bench.timings.ops import MODES
from bench.timings.providers import COMPILE, EAGER, FASTREG, TORCH

NOTE = (
    "Bars: times the speed of PyTorch's fastest eager mode (1x), median over the rounds, line from 20 to 80 %. "
    "Longer is faster.\nDiamonds: times torch.compile's speed."
)
Quantiles = tuple[float, float, float]
Ratios = dict[tuple[str, str, str], Quantiles]  # (operator, mode, tensor) -> 20, 50 and 80 % quantiles


def best_ratios(rows: list[dict], providers: Collection[str] = EAGER) -> Ratios:
    """fastreg's speed over that of the fastest of the providers."""
    best: dict[tuple[str, str, str], dict] = {}
    for row in rows:
        case = row["op"], row["mode"], tensors.label(row)
        if row["provider"] in providers and (case not in best or row["us"] < best[case]["us"]):
            best[case] = row
    return {case: (row["ratio_20"], row["ratio"], row["ratio_80"]) for case, row in best.items()}


def draw(rows: list[dict]) -> Figure:
    """A row of panels per operator, a column per mode, a bar per tensor, on one logarithmic axis."""
    ratios, compiled = best_ratios(rows), best_ratios(rows, [COMPILE.name])
    names: dict[str, list[str]] = {}
    for row in rows:
        if tensors.label(row) not in names.setdefault(row["op"], []):
            names[row["op"]].append(tensors.label(row))
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    heights = [len(labels) + 1.5 for labels in names.values()]
    figure = Figure(figsize=(3 * max(len(modes), 2), 1.3 + 0.32 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(names), len(modes), sharex=True, squeeze=False, height_ratios=heights)
    for line, (op, labels) in zip(grid, names.items(), strict=True):
        for ax, mode in zip(line, modes, strict=True):
            bars = [ratios.get((op, mode, label)) for label in labels]
            if not any(bars) and ax is not line[0]:
                ax.set_visible(False)
                continue
            _bars(ax, bars, [compiled.get((op, mode, label)) for label in labels])
            ax.set_yticks(range(len(labels)), labels if ax is line[0] else [], color=INK)
            ax.set_title(tensors.MODES.get(mode, mode), fontweight="normal")
        _name(line[0], op)
    values = [quantile for case in (*ratios.values(), *compiled.values()) for quantile in case]
    low, high = min([0.75, *values]), max([2.0, *values])
    grid[0, 0].set_xlim(low / 1.1, high * (high / low) ** 0.35)  # room for the figures
    return figure


def _name(ax: Axes, op: str) -> None:
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "xytext": (-8, 6), "ha": "right"}
    ax.annotate(op.replace("_", " "), (0, 1), **place, fontsize=11.5, fontweight="bold")


def _bars(ax: Axes, bars: list[Quantiles | None], diamonds: list[Quantiles | None]) -> None:
    for position, (bar, diamond) in enumerate(zip(bars, diamonds, strict=True)):
        if diamond:
            style = {"marker": "D", "markersize": 4.5, "markerfacecolor": "white", "zorder": 3}
            ax.plot(diamond[1], position, color=COLOURS[COMPILE.name], **style)
        if bar is None:
            continue
        low, median, high = bar
        colour = COLOURS[FASTREG.name if median >= 1 else TORCH.name]
        ax.barh(position, median - 1, left=1, height=0.66, color=colour)
        ax.plot([low, high], [position, position], color=INK, linewidth=1)
        furthest = max(1, high, diamond[1] if diamond else 1)
        place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(f"{significant(median)}x", (furthest, position), **place, color=colour, fontweight="bold")
    ax.axvline(1, color=COLOURS[TORCH.name], linewidth=1.2)
    ax.set_ylim(len(bars) - 0.4, -0.6)
    ax.tick_params(axis="both", length=0)
    ax.tick_params(axis="x", labelbottom=True)
    ax.spines["left"].set_visible(False)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(axis="x", color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
