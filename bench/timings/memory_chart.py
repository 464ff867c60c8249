"""Memory that a layer keeps from forward to backward, in sizes of its input."""

from __future__ import annotations

from matplotlib.axes import Axes

from bench.charts import COLOURS, GRID, INK, LABELS
from bench.timings import tensors

DRAWN = ("torch", "compile", "fastreg")


def kept(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Operator -> provider -> bytes kept over bytes of the input, in forward + backward of its largest tensor."""
    largest: dict[str, dict[str, dict]] = {}
    for row in rows:
        if row["mode"] != "both" or row["provider"] not in DRAWN or row.get("saved_bytes") is None:
            continue
        own = largest.setdefault(row["op"], {})
        if row["provider"] not in own or tensors.size(row) > tensors.size(own[row["provider"]]):
            own[row["provider"]] = row
    return {
        op: {name: row["saved_bytes"] / tensors.size(row) for name, row in own.items()} for op, own in largest.items()
    }


def draw(ax: Axes, rows: list[dict]) -> None:
    """A group of bars per operator."""
    ratios = kept(rows)
    ax.set_visible(bool(ratios))
    height = 0.8 / len(DRAWN)
    for index, name in enumerate(DRAWN):
        for position, own in enumerate(ratios.values()):
            if name not in own:
                continue
            at = position + (index - (len(DRAWN) - 1) / 2) * height
            ax.barh(at, own[name], height * 0.9, color=COLOURS[name])
            text = "nothing" if own[name] < 0.005 else f"{own[name]:.3g}"
            place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
            ax.annotate(f"{text}  {LABELS[name]}", (own[name], at), **place, color=COLOURS[name])
    ax.set_yticks(range(len(ratios)), [op.replace("_", " ") for op in ratios], color=INK)
    ax.set_ylim(len(ratios) - 0.4, -0.6)
    ax.set_xlim(0, 1.35 * max([1, *(value for own in ratios.values() for value in own.values())]))
    ax.set_title("Memory kept for backward, in sizes of the input", color=INK)
    ax.tick_params(length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
