"""The table of users' networks that is printed."""

from __future__ import annotations

from bench.results import CONTENDED, format_table, significant
from bench.timings.cases import CASE_COLUMNS, key
from bench.timings.providers import FASTREG


def report(rows: list[dict]) -> str:
    """A line per network, mode and batch: the time of the plain one, and how many times its speed the converted ones
    have, with the spread of the rounds. One marked with ! was measured while other programs took CPU time."""
    by_case: dict[tuple[str, ...], dict[str, dict]] = {}
    for row in rows:
        by_case.setdefault(key(row), {})[row["provider"]] = row
    lines = []
    for case, own in by_case.items():
        plain = own["torch"]
        mark = "!" if plain.get("contention", 0) > CONTENDED else " "
        speed_up = f"{plain['ratio']:.2f} ({plain['ratio_20']:.2f}-{plain['ratio_80']:.2f}){mark}"
        others = [f"{plain['us'] / own[name]['us']:.2f}" if name in own else "" for name in ("unfused", "patched")]
        times = [significant(each["us"]) for each in (plain, own[FASTREG.name])]
        lines.append([*case, str(plain["sites"]), *times, speed_up, *others])
    header = [*CASE_COLUMNS, "sites", "plain us", "converted us", "times plain (20-80 %) ", "not fused", "patched"]
    return format_table(header, lines, words=len(CASE_COLUMNS))
