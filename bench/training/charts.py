"""Charts of curves by epoch: the median seed, the range of all, and at the end of each line its name and value."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from bench.charts import COLOURS, GRID, INK, LABELS, MUTED
from bench.results import significant
from bench.training.loop import FASTREG, TORCH
from bench.training.report import runs, speeds

# Okabe and Ito's colours, which differ under every common colour blindness, the palest left out.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
LABEL = "end of a line"


@dataclass(frozen=True)
class Line:
    """A quantity by epoch: a row per seed, NaN where a run was cut short."""

    values: np.ndarray
    colour: str
    label: str = ""
    wide: bool = False  # under a line that it may coincide with


def by_epoch(rows: list[dict], column: str, **where) -> np.ndarray:
    """[seeds, epochs] of the rows whose columns have the given values."""
    rows = [row for row in rows if all(row[key] == value for key, value in where.items()) and column in row]
    found = [[row[column] for row in own] for own in runs(rows).values()]
    values = np.full((len(found), max(map(len, found), default=0)), np.nan)
    for index, curve in enumerate(found):
        values[index, : len(curve)] = curve
    return values


def unique(rows: list[dict], column: str) -> list:
    """Its values, in the order in which they come."""
    return list(dict.fromkeys(row[column] for row in rows))


def compare(rows: list[dict], columns: Sequence[str]) -> Figure:
    """A panel per column. Colours tell the layers apart, or where there are several networks, the networks."""
    variants = unique(rows, "variant")
    lines, across = (2, 2) if len(columns) == 4 else (1, len(columns))
    figure = Figure(figsize=(12, 0.7 + 3.5 * lines), layout="constrained")
    for ax, column in zip(figure.subplots(lines, across, squeeze=False).flat, columns, strict=True):
        curves = []
        for colour, variant in zip(PALETTE, variants, strict=False):
            layers = unique([row for row in rows if row["variant"] == variant], "layers")
            for name in sorted(layers, key=lambda name: name != TORCH.name):
                alone, last = len(variants) == 1, name == layers[-1] or name == FASTREG.name
                values = by_epoch(rows, column, variant=variant, layers=name)
                label = LABELS.get(name, variant) if alone else variant * last
                wide = name == TORCH.name and len(layers) > 1
                curves.append(Line(values, COLOURS.get(name, INK) if alone else colour, label, wide))
        draw(ax, curves, column)
        ax.set_title(column.replace("_", " "))
    for quantity in ("_loss", "_accuracy", "_variance"):
        if own := [ax for ax, column in zip(figure.axes, columns, strict=True) if column.endswith(quantity)]:
            share_limits(own)
            low, high = own[0].get_ylim()
            if quantity == "_accuracy" and high - low < 0.05:  # differences of a few samples do not fill the panel
                own[0].set_ylim(high - 0.05)
                share_limits(own)
    return figure


def draw(ax: Axes, lines: Sequence[Line], column: str) -> None:
    """Losses on a logarithmic axis, accuracies in percent."""
    accuracy = column.endswith("_accuracy")
    form: Callable = "{:.1%}".format if accuracy else significant
    for line in lines:
        if not np.isfinite(line.values).any():
            continue
        values = np.where(np.isfinite(line.values), line.values, np.nan)
        epochs = 1 + np.flatnonzero(np.isfinite(values).any(0))
        low, median, high = np.nanquantile(values[:, epochs - 1], (0, 0.5, 1), axis=0)
        ax.fill_between(epochs, low, high, color=line.colour, alpha=0.12, linewidth=0)
        width, alpha = (3.2, 0.55) if line.wide else (1.3, 1)
        ax.plot(epochs, median, color=line.colour, linewidth=width, alpha=alpha, solid_capstyle="butt")
        if line.label:
            ax.annotate(
                f"{line.label} {form(median[-1])}",
                (epochs[-1], median[-1]),
                xytext=(6, 0),
                textcoords="offset points",
                color=line.colour,
                fontweight="bold",
                va="center",
                annotation_clip=False,
                gid=LABEL,
            )
    if accuracy:
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    else:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    ax.tick_params(length=0)
    ax.grid(axis="y", color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)


def share_limits(axes: Sequence[Axes]) -> None:
    """The same range of y for all."""
    limits = [limit for ax in axes for limit in ax.get_ylim()]
    for ax in axes:
        ax.set_ylim(min(limits), max(limits))


def separate_labels(figure: Figure) -> None:
    """Move the labels at the ends of lines up and down until none covers another. For a figure that is complete."""
    figure.draw_without_rendering()
    for ax in figure.axes:
        labels = [text for text in ax.texts if text.get_gid() == LABEL]
        labels.sort(key=lambda text: ax.transData.transform(text.xy)[1])
        wanted = [ax.transData.transform(text.xy)[1] for text in labels]
        height = max((text.get_window_extent().height for text in labels), default=0)
        for text, at, target in zip(labels, apart(wanted, height), wanted, strict=True):
            text.set_position((6, (at - target) * 72 / figure.dpi))


def apart(wanted: Sequence[float], distance: float) -> list[float]:
    """Ascending positions at least so far apart, as near to the wanted ones as that allows (least squares)."""
    groups: list[tuple[float, int]] = []  # mean of the wanted ones less the distances before each; how many
    for index, target in enumerate(wanted):
        mean, count = target - index * distance, 1
        while groups and groups[-1][0] > mean:
            before, more = groups.pop()
            mean, count = (mean * count + before * more) / (count + more), count + more
        groups.append((mean, count))
    means = [mean for mean, count in groups for _ in range(count)]
    return [mean + index * distance for index, mean in enumerate(means)]


def note(rows: list[dict]) -> str:
    """What is drawn: seeds, whose layers are which line, and whose are faster."""
    seeds, layers = len(unique(rows, "seed")), unique(rows, "layers")
    parts = ["by epoch" + f": median and range of {seeds} seeds" * (seeds > 1)]
    if {TORCH.name, FASTREG.name} <= set(layers):
        parts.append(f"wide lines: {LABELS[TORCH.name]}, thin: {LABELS[FASTREG.name]}")
        if ratios := speeds(rows):
            parts.append(f"fastreg trains at {statistics.median(ratios.values()):.2f}x PyTorch's speed")
    elif len(layers) == 1:
        parts.append(f"{LABELS.get(layers[0], 'any')}'s layers")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def legend(ax: Axes, entries: dict[str, str]) -> None:
    """Names in their colours, in the panel."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for index, (name, colour) in enumerate(entries.items()):
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "xytext": (-4, 6 + 12 * index)}
        ax.annotate(name, (1, 0), **place, color=colour, fontweight="bold", ha="right", fontsize=8.5, bbox=box)


def frame(ax: Axes, name: str) -> None:
    """A small panel of a grid."""
    ax.set_title(name, fontsize=9, fontweight="normal", color=INK)
    ax.tick_params(labelsize=8, colors=MUTED)
