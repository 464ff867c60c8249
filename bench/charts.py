"""PNG charts of the result rows."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from bench.cases import ACCESSES
from bench.providers import FASTREG, TORCH
from bench.results import significant
from bench.timing import COPY

# Okabe and Ito's blue and vermilion: told apart under every common colour blindness, and in grey.
COLOURS = {TORCH.name: "#D55E00", FASTREG.name: "#0072B2"}
LABELS = {TORCH.name: "PyTorch", FASTREG.name: "fastreg"}
INK, MUTED, GRID = "#222222", "#666666", "#dddddd"
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "savefig.dpi": 150,
}
Quantiles = tuple[float, float, float]


def best_ratios(rows: list[dict]) -> dict[tuple[str, str, str], Quantiles]:
    """(op, direction, tensor) -> 20, 50 and 80 % quantiles of the ratio to PyTorch's fastest provider."""
    best = {}
    for row in rows:
        tensor = f"{row['shape']}  {DTYPES[row['dtype']]}{'  channels-last' * (row['layout'] == 'channels_last')}"
        case = row["op"], row["direction"], tensor
        if row["provider"] not in (FASTREG.name, COPY) and (case not in best or row["us"] < best[case]["us"]):
            best[case] = row
    return {case: (row["ratio_20"], row["ratio"], row["ratio_80"]) for case, row in best.items()}


def speed(rows: list[dict], title: str, caption: str, path: Path) -> None:
    """A bar per case: how many times PyTorch's speed, from 1 on a logarithmic axis; a row per operator."""
    ratios = best_ratios(rows)
    tensors: dict[str, list[str]] = {}
    for op, _, tensor in ratios:
        if tensor not in tensors.setdefault(op, []):
            tensors[op].append(tensor)
    directions = list(dict.fromkeys(direction for ways in ACCESSES.values() for direction in ways))
    heights = [len(names) + 1.5 for names in tensors.values()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 1.1 + 0.32 * sum(heights)), layout="constrained")
        grid = figure.subplots(len(tensors), len(directions), sharex=True, squeeze=False, height_ratios=heights)
        for line, (op, names) in zip(grid, tensors.items(), strict=True):
            for ax, direction in zip(line, directions, strict=True):
                if direction not in ACCESSES[op]:
                    ax.set_visible(False)
                    continue
                bars = [ratios.get((op, direction, name)) for name in names]
                _ratio_bars(ax, bars, names if ax is line[0] else [])
                ax.set_title(direction.replace("both", "forward + backward"), fontweight="normal")
            line[0].annotate(
                op.replace("_", " "),
                (0, 1),
                xytext=(-8, 6),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="right",
                fontsize=11.5,
                fontweight="bold",
            )
        values = [quantile for case in ratios.values() for quantile in case]
        low, high = min(0.75, *values), max(2.0, *values)
        grid[0, 0].set_xlim(low / 1.1, high * (high / low) ** 0.35)  # room for the figures
        note = "Times PyTorch's speed (1x): median over the rounds, line from 20 to 80 %. Longer is faster."
        inscribe(figure, title, f"{note}\n{caption}")
        figure.savefig(path)


def inscribe(figure: Figure, title: str, note: str) -> None:
    """The title above all panels, the note below."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(note, x=0.01, ha="left", color=MUTED, fontsize=9)


def _ratio_bars(ax: Axes, bars: list[Quantiles | None], names: list[str]) -> None:
    for position, bar in enumerate(bars):
        if bar is None:
            continue
        low, median, high = bar
        colour = COLOURS[FASTREG.name if median >= 1 else TORCH.name]
        ax.barh(position, median - 1, left=1, height=0.66, color=colour)
        ax.plot([low, high], [position, position], color=INK, linewidth=1)
        ax.annotate(
            f"{significant(median)}x",
            (max(1, high), position),
            xytext=(5, 0),
            textcoords="offset points",
            color=colour,
            fontweight="bold",
            va="center",
        )
    ax.axvline(1, color=COLOURS[TORCH.name], linewidth=1.2)
    ax.set_ylim(len(bars) - 0.4, -0.6)
    ax.set_yticks(range(len(names)), names, color=INK)
    ax.tick_params(axis="both", length=0)
    ax.tick_params(axis="x", labelbottom=True)
    ax.spines["left"].set_visible(False)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(axis="x", color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
