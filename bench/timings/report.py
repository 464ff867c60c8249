"""The table of timings that is printed."""

from __future__ import annotations

from bench.results import CONTENDED, format_table, significant
from bench.timings.cases import CASE_COLUMNS, key
from bench.timings.providers import FASTREG
from bench.timings.run import COPY
from bench.timings.tensors import size


def report(rows: list[dict]) -> str:
    """A line per case and peer; GB/s and the share of the copy's bandwidth are fastreg's.

    predicted: fastreg's time if it moves what its plan says at the copy's bandwidth; estimated: from data sheets alone.
    saved: bytes kept for backward per byte of the input, the peer's and fastreg's. A ratio marked with ! was measured
    while other programs took CPU time."""
    ours = {key(row): row for row in rows if row["provider"] == FASTREG.name}
    lines = []
    for row in rows:
        if row["provider"] in (FASTREG.name, COPY):
            continue
        mine = ours[key(row)]
        ratio = f"{significant(row['ratio'])} ({significant(row['ratio_20'])}-{significant(row['ratio_80'])})"
        ratio += "!" if row.get("contention", 0) > CONTENDED else " "
        times = [significant(row["us"]), significant(mine["us"])]
        foretold = [mine.get(column) for column in ("predicted_us", "estimated_us")]
        saved = [_per_input(each) for each in (row, mine)]
        speed = [f"{mine['gb_per_s']:.1f}", f"{mine['of_copy']:.0%}"]
        times += [significant(us) if us else "" for us in foretold]
        lines.append([*key(row), row["provider"], *times, ratio, *speed, *saved])
    header = [
        *CASE_COLUMNS,
        "peer",
        "peer us",
        "fastreg us",
        "predicted",
        "estimated",
        "ratio (20-80 %) ",
        "GB/s",
        "of copy",
    ]
    return format_table([*header, "saved", "fastreg saved"], lines, words=len(CASE_COLUMNS) + 1)


def _per_input(row: dict) -> str:
    return "" if row["saved_bytes"] is None else f"{row['saved_bytes'] / size(row):.2f}"
