"""The numbers of an experiment: means and spread over the seeds, tables, and the JSON file."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.results import CONTENDED, format_table, replace_file, result_path
from bench.training.loop import FASTREG, TORCH

KEYS = ("variant", "layers", "seed")  # what identifies a run; further columns that never change join them
SPEED = f"{TORCH.name}'s seconds / {FASTREG.name}'s"


def runs(rows: Iterable[dict]) -> dict[tuple, list[dict]]:
    """(variant, layers, seed) -> its rows, in the order of the epochs."""
    grouped: dict[tuple, list[dict]] = {}
    for row in rows:
        grouped.setdefault(tuple(row[key] for key in KEYS), []).append(row)
    return grouped


def summarise(rows: list[dict]) -> list[dict]:
    """Per variant and layers: the last epoch's mean and standard deviation over the seeds; median seconds per epoch.

    The speed is the median, over the epochs, of torch's seconds over fastreg's in the same epoch."""
    last: dict[tuple, list[dict]] = {}
    for (variant, layers, _), own in runs(rows).items():
        last.setdefault((variant, layers), []).append(own[-1])
    ratios = speeds(rows)
    summary = []
    for (variant, layers), ends in last.items():
        seconds = [row["seconds"] for row in rows if (row["variant"], row["layers"]) == (variant, layers)]
        line = {"variant": variant, "layers": layers, "seeds": len(ends), "epochs": max(row["epoch"] for row in ends)}
        line["seconds_per_epoch"] = statistics.median(seconds)
        if layers == FASTREG.name and variant in ratios:
            line[SPEED] = ratios[variant]
        for column in curves(ends[0]):
            values = [row[column] for row in ends]
            line[column] = statistics.fmean(values)
            if len(values) > 1:
                line[f"{column}_deviation"] = _deviation(values)
        summary.append(line)
    return summary


def speeds(rows: list[dict]) -> dict[str, float]:
    """Variant -> median over the epochs of torch's seconds over fastreg's, where both were trained; of the epochs that
    no other program disturbed."""
    quiet = [row for row in rows if row.get("contention", 0) <= CONTENDED]
    seconds = {(row["variant"], row["seed"], row["epoch"], row["layers"]): row["seconds"] for row in quiet}
    ratios: dict[str, list[float]] = {}
    for (*when, layers), ours in seconds.items():
        if layers == FASTREG.name and (theirs := seconds.get((*when, TORCH.name))):
            ratios.setdefault(when[0], []).append(theirs / ours)
    return {variant: statistics.median(values) for variant, values in ratios.items()}


def curves(row: dict) -> list[str]:
    """The columns that an epoch is judged by."""
    return [column for column in row if column.endswith(("_loss", "_accuracy", "_variance"))]


def table(rows: list[dict]) -> str:
    """A line per variant and layers: mean ± standard deviation over the seeds."""
    summary = summarise(rows)
    columns = list(dict.fromkeys(column for line in summary for column in curves(line)))
    header = ["network", "layers", *(column.replace("_", " ") for column in columns), "s/epoch", "speed"]
    lines = []
    for line in summary:
        cells = [spread(line, column) if column in line else "" for column in columns]
        speed = f"{line[SPEED]:.2f}x" if SPEED in line else ""
        lines.append([line["variant"], line["layers"], *cells, f"{line['seconds_per_epoch']:.3g}", speed])
    text = format_table(header, lines, words=2)
    seeds, epochs = (max(line[key] for line in summary) for key in ("seeds", "epochs"))
    return f"{epochs} epochs, {seeds} seed{'s' * (seeds > 1)}; speed: {SPEED}\n{text}"


def spread(line: dict, column: str) -> str:
    """Of a line of the summary: mean, and standard deviation where there are several seeds."""
    form = "{:.2%}" if column.endswith("_accuracy") else "{:.4g}"
    mean = form.format(line[column])
    deviation = line.get(f"{column}_deviation")
    return mean if deviation is None else f"{mean} ± {form.format(deviation)}"


def write(
    folder: Path,
    stem: str,
    environment: dict,
    rows: list[dict],
    complete: bool,
    about: dict,
    answer: Callable[[list[dict]], str] | None = None,
) -> list[Path]:
    """`stem.json`: `about`, the environment, the answer if there is one, the summary, and each run with its curves, a
    run a line."""
    document = {"complete": complete, **about, "environment": environment}
    if answer and rows:
        document["answer"] = answer(rows)
    head = json.dumps(document, indent=1).removesuffix("\n}")
    parts = {
        "summary": [_rounded(line) for line in summarise(rows)],
        "runs": [_run(own) for own in runs(rows).values()],
    }
    for name, lines in parts.items():
        body = ",\n".join("  " + json.dumps(line) for line in lines)
        head += f',\n "{name}": [\n{body}\n ]'
    path = result_path(folder, stem, "json", complete)
    replace_file(path, head + "\n}\n")
    return [path]


def _run(rows: list[dict]) -> dict:
    """One run: what is the same in all its rows, then a list per column, an entry per epoch."""
    listed = {"seconds", *curves(rows[0])}
    run = {key: value for key, value in rows[0].items() if key not in listed | {"epoch", "contention"}}
    if "contention" in rows[0]:
        run["contention"] = statistics.fmean(row["contention"] for row in rows)
    for column in rows[0]:
        if column in listed:
            run[column] = [row[column] for row in rows]
    return _rounded(run)


def _rounded(values: dict) -> dict:
    return {key: _round(value) for key, value in values.items()}


def _round(value):
    """Four digits; null for what is not finite, which JSON has no word for."""
    if isinstance(value, list):
        return [_round(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
