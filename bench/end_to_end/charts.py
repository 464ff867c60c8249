"""The chart of whole networks: speed, memory, and what a step spends its time on."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.charts import COLOURS, INK, STYLE, inscribe
from bench.end_to_end.report import title as network_title
from bench.end_to_end.shares import SHARES, TITLES
from bench.results import significant
from bench.timings.tensors import with_unit

VARIANT_COLOURS = {
    "plain": COLOURS["torch"],
    "converted": COLOURS["fastreg"],
    "compiled": COLOURS["compile"],
    "converted, compiled": COLOURS["inplace_abn"],
    "patched": COLOURS["apex"],
}
SHARE_COLOURS = dict(zip(SHARES, ("#BBBBBB", COLOURS["torch"], COLOURS["torch_without_cudnn"], "#E8E8E8"), strict=True))


def draw(rows: list[dict], title: str, caption: str, path: Path) -> None:
    """A line of panels per network and number of devices."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(network_title(row), []).append(row)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 1.2 + 2.6 * len(groups)), layout="constrained")
        for line, (name, own) in zip(
            figure.subplots(len(groups), 3, squeeze=False, width_ratios=[5, 4, 5]), groups.items(), strict=True
        ):
            _bars(line[0], own, "steps_per_s", lambda row: f"{significant(row['steps_per_s'])}  {row['speed_up']:.2f}x")
            line[0].set_title(f"{name}\nsteps per second")
            _bars(line[1], own, "peak_bytes", lambda row: with_unit(row["peak_bytes"]))
            line[1].set_title("peak memory of a step")
            line[1].set_yticks([])
            _shares(line[2], [row for row in own if row[SHARES[0]] is not None])
            for ax in line:
                ax.set_xticks([])
                ax.spines["bottom"].set_visible(False)
                ax.tick_params(length=0)
                ax.spines["left"].set_visible(False)
        inscribe(figure, title, f"Steps: median over the rounds, and times plain's speed, round by round.\n{caption}")
        figure.savefig(path)


def _bars(ax: Axes, rows: list[dict], column: str, text) -> None:
    for position, row in enumerate(rows):
        colour = VARIANT_COLOURS[row["variant"]]
        ax.barh(position, row[column], 0.66, color=colour)
        place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontweight": "bold"}
        ax.annotate(text(row), (row[column], position), **place, color=colour)
    ax.set_yticks(range(len(rows)), [row["variant"] for row in rows], color=INK)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, 1.5 * max(row[column] for row in rows))


def _shares(ax: Axes, rows: list[dict]) -> None:
    ax.set_title("what a step's time goes to")
    for position, row in enumerate(rows):
        left = 0.0
        for name in SHARES:
            bar = ax.barh(position, row[name], 0.66, left=left, color=SHARE_COLOURS[name])
            bar.set_label(TITLES[name] if position == 0 else None)
            left += row[name]
            if row[name] > 0.06:
                ax.annotate(f"{row[name]:.0%}", (left - row[name] / 2, position), ha="center", va="center")
    ax.set_yticks(range(len(rows)), [row["variant"] for row in rows], color=INK)
    ax.set_ylim(len(rows) - 0.4 + 0.9, -0.6)
    ax.set_xlim(0, 1)
    if rows:
        ax.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", handlelength=1, borderpad=0)


CHARTS = {"": draw}
