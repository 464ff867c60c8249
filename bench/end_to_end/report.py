"""The table of training steps that is printed."""

from __future__ import annotations

from bench.end_to_end.shares import SHARES, TITLES
from bench.results import CONTENDED, format_table, significant


def report(rows: list[dict]) -> str:
    """A line per network, number of devices and variant. A speed-up marked with ! was measured while other programs
    took CPU time."""
    lines = []
    for row in rows:
        low, median, high = (significant(row[column]) for column in ("speed_up_20", "speed_up", "speed_up_80"))
        speed_up = f"{median} ({low}-{high})"
        speed_up += "!" if row.get("contention", 0) > CONTENDED else " "
        parts = ["" if row[name] is None else f"{row[name]:.0%}" for name in SHARES]
        figures = [significant(row["steps_per_s"]), speed_up, f"{row['peak_bytes'] / 2**20:,.0f}", *parts]
        lines.append([title(row), row["variant"], *figures])
    header = ["network", "variant", "steps/s", "times plain (20-80 %) ", "peak MiB", *TITLES.values()]
    return format_table(header, lines, words=2)


def title(row: dict) -> str:
    """resnet50 (torchvision), 8x3x224x224, float32, 2 devices"""
    devices = f", {row['devices']} devices" if row["devices"] > 1 else ""
    return f"{row['network']} ({row['source']}), {row['batch']}x{row['input']}, {row['dtype']}{devices}"
