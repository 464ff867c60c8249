"""What changed from one run's result file to another's, told apart from noise.

The rule, for each case and provider: its time in the second file over its time in the first, divided by the change that
all of the case have in common, is a change where it exceeds all of
- 5 %;
- the spreads from the 20 to the 80 % quantile in both runs, the provider's own and those of what is common;
- three times the usual deviation, over all cases, of a provider's change from that provider's median change.
What is common is the median over the case's providers, the copy among them, which is the same code in every run; with
one provider it is the copy's own change. Cases that other programs disturbed in either run are not compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import environment
from bench.results import CONTENDED, format_table, read_document
from bench.timings.cases import CASE_COLUMNS, key
from bench.timings.providers import FASTREG
from bench.timings.run import COPY

LEAST = math.log(1.05)
DEVIATIONS = 3
SAME = ("device", "backend", "fastreg_kernels", "cpu", "threads", "instruction_set", "torch", "cuda", "cudnn", "python")
Timing = tuple[tuple[str, ...], str]  # case and provider


@dataclass(frozen=True)
class Change:
    """factor: how many times longer the provider takes, beyond what is common; bound: the least that is no noise."""

    case: tuple[str, ...]
    provider: str
    before: float  # microseconds
    after: float
    factor: float
    bound: float

    @property
    def slower(self) -> bool:
        return self.factor > self.bound

    @property
    def faster(self) -> bool:
        return self.factor < 1 / self.bound


@dataclass(frozen=True)
class Comparison:
    """only: cases in one file and not in the other. disturbed: cases that are not compared."""

    changes: list[Change]
    only: tuple[int, int]
    disturbed: int = 0

    def means(self) -> dict[str, float]:
        """Provider -> geometric mean of its changes over the cases."""
        logs: dict[str, list[float]] = {}
        for change in self.changes:
            logs.setdefault(change.provider, []).append(math.log(change.factor))
        return {provider: math.exp(statistics.fmean(own)) for provider, own in logs.items()}

    def slower_fastreg(self, limit: float) -> list[str]:
        """The cases in which fastreg takes more than `limit` times as long as before, beyond noise."""
        return [
            f"{' '.join(change.case)}: {change.factor:.2f} times its time before"
            for change in self.changes
            if change.provider == FASTREG.name and change.slower and change.factor > limit
        ]

    def report(self) -> str:
        """The changes, the largest first, then one line of counts."""
        real = [change for change in self.changes if change.slower or change.faster]
        real.sort(key=lambda change: -abs(math.log(change.factor)))
        lines = [
            [*change.case, change.provider, f"{change.before:.4g}", f"{change.after:.4g}", *_verdict(change)]
            for change in real
        ]
        header = [*CASE_COLUMNS, "provider", "us before", "us after", "change", "noise up to"]
        table = [format_table(header, lines, words=len(CASE_COLUMNS) + 1)] if lines else []
        slower = sum(change.slower for change in real)
        counts = f"{slower} slower, {len(real) - slower} faster" if real else "no change"
        text = f"{counts} in {len(self.changes)} timings of {len({change.case for change in self.changes})} cases"
        means = "\n".join(
            f"{name}: {mean:.3f}x of its time before, geometric mean" for name, mean in self.means().items()
        )
        text += f"; disturbed by other programs, and not compared: {self.disturbed} cases" if self.disturbed else ""
        alone = zip(("first", "second"), self.only, strict=True)
        text += "".join(f"; in the {which} file alone: {count} cases" for which, count in alone if count)
        return "\n\n".join([*table, means, text])


def _verdict(change: Change) -> tuple[str, str]:
    factor = change.factor if change.slower else 1 / change.factor
    return f"{factor:.2f}x {'slower' if change.slower else 'faster'}", f"{change.bound:.2f}x"


def compare_files(before: Path, after: Path) -> Comparison:
    """Of two JSON files of timings.

    Raises:
        ValueError: a file is missing, damaged or of something else, they are of different devices, versions of
            PyTorch or settings, or have no case in common.
        OSError: a file cannot be read.
    """
    documents = [read_document(path) for path in (before, after)]
    for path, document in zip((before, after), documents, strict=True):
        if any(column not in row for row in document["rows"] for column in (*CASE_COLUMNS, "provider", "us")):
            raise ValueError(f"--compare must have files of timings, got {path}")
    if differences := environment.differences(*(document["environment"] for document in documents), SAME):
        raise ValueError(f"--compare must have files of one device and version, got {differences}")
    comparison = compare(*(document["rows"] for document in documents))
    if not comparison.changes:
        undisturbed = " that no other program disturbed" * (comparison.disturbed > 0)
        raise ValueError(f"--compare must have files with a case in common, got none{undisturbed}")
    return comparison


def compare(before: Sequence[dict], after: Sequence[dict]) -> Comparison:
    """By the rule above."""
    first, second = ({(key(row), row["provider"]): row for row in rows} for rows in (before, after))
    cases = [{case for case, _ in rows} for rows in (first, second)]
    disturbed = {key(row) for row in (*before, *after) if row.get("contention", 0) > CONTENDED} & cases[0] & cases[1]
    shared = [which for which in first if which in second and which[0] not in disturbed]
    logs = {which: math.log(second[which]["us"] / first[which]["us"]) for which in shared}
    spreads = {
        which: sum(math.log(row["us_80"] / row["us_20"]) for row in (first[which], second[which])) for which in shared
    }
    by_case: dict[tuple[str, ...], list[Timing]] = {}
    for which in shared:
        by_case.setdefault(which[0], []).append(which)
    common = {case: _common(own, logs) for case, own in by_case.items()}
    beyond = {which: logs[which] - logs[common[which[0]]] for which in shared if which[1] != COPY}
    usual = _usual_deviation(beyond)
    changes = []
    for which, change in beyond.items():
        bound = max(LEAST, spreads[which] + spreads[common[which[0]]], DEVIATIONS * usual)
        times = first[which]["us"], second[which]["us"]
        changes.append(Change(*which, *times, math.exp(change), math.exp(bound)))
    return Comparison(changes, (len(cases[0] - cases[1]), len(cases[1] - cases[0])), len(disturbed))


def _common(own: list[Timing], logs: dict[Timing, float]) -> Timing:
    """The one of a case's timings whose change passes for that of all."""
    copies = [which for which in own if which[1] == COPY]
    if len(own) < 3 and copies:
        return copies[0]
    return sorted(own, key=logs.get)[(len(own) - 1) // 2]


def _usual_deviation(changes: dict[Timing, float]) -> float:
    """The standard deviation of what is no outlier. About each provider's own median, or else one that has become
    slower everywhere would pass for noise."""
    by_provider: dict[str, list[float]] = {}
    for (_, provider), change in changes.items():
        by_provider.setdefault(provider, []).append(change)
    deviations = [abs(each - statistics.median(own)) for own in by_provider.values() for each in own]
    return 1.4826 * statistics.median_low(deviations) if deviations else 0.0


def slower_than_others(rows: Sequence[dict], limit: float) -> list[str]:
    """The cases in which fastreg takes more than `limit` times as long as another, beyond the rounds' spread."""
    return [
        f"{' '.join(key(row))}: {1 / row['ratio']:.2f} times the time of {row['provider']}"
        for row in rows
        if row["provider"] not in (COPY, FASTREG.name) and row["ratio_80"] * limit < 1
    ]
