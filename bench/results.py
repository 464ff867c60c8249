"""Result files and printed tables."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

CONTENDED = 0.03  # a row is marked where other programs took more than this share of the CPU time


def prepare_folder(folder: Path) -> None:
    """Make `folder` and write to it, so that an OSError comes before the work and not after it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def result_path(folder: Path, stem: str, suffix: str, complete: bool) -> Path:
    """`stem.suffix`, or `stem.partial.suffix` for what an interrupted run leaves. Complete results replace both."""
    path, partial = folder / f"{stem}.{suffix}", folder / f"{stem}.partial.{suffix}"
    if not complete:
        return partial
    partial.unlink(missing_ok=True)
    return path


def latest(folder: Path, stem: str) -> Path | None:
    """The JSON file of a part: complete, or of a run that was cut short; None where there is neither."""
    return next((path for path in (folder / f"{stem}.json", folder / f"{stem}.partial.json") if path.exists()), None)


def write_results(
    folder: Path,
    stem: str,
    environment: dict,
    rows: list[dict],
    complete: bool,
    failed: Sequence[dict] = (),
    suffixes: Collection[str] = ("json", "csv"),
) -> list[Path]:
    """`stem.json` with the whole environment, `stem.csv` with each row keyed by device and versions.

    failed: what could not be measured, and why; it goes to the JSON alone."""
    document = {"complete": complete, "environment": environment, "rows": rows}
    if failed:
        document["failed"] = list(failed)
    keys = {key: value for key, value in environment.items() if not isinstance(value, dict)}
    table = io.StringIO()
    if rows:
        writer = csv.DictWriter(table, [*keys, "complete", *rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(keys | {"complete": complete} | row for row in rows)
    contents = {"json": json.dumps(document, indent=1) + "\n", "csv": table.getvalue()}
    paths = []
    for suffix, text in contents.items():
        if suffix not in suffixes:
            continue
        paths.append(result_path(folder, stem, suffix, complete))
        replace_file(paths[-1], text)
    return paths


def read_document(path: Path) -> dict:
    """What write_results wrote.

    Raises:
        ValueError: it is something else.
        OSError: it cannot be read.
    """
    try:
        document = json.loads(path.read_text())
    except ValueError:
        document = None
    if not isinstance(document, dict) or not {"environment", "rows"} <= document.keys():
        raise ValueError(f"must be a JSON file of results, got {path}")
    return document


def replace_file(path: Path, text: str) -> None:
    """Write it whole or not at all."""
    scratch = path.with_suffix(path.suffix + ".new")
    scratch.write_text(text)
    os.replace(scratch, path)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Aligned columns: the first `words` to the left, the others to the right."""
    cells = []
    for index, column in enumerate(zip(header, *rows, strict=True)):
        width = max(map(len, column))
        cells.append([cell.ljust(width) if index < words else cell.rjust(width) for cell in column])
    lines = ["  ".join(line).rstrip() for line in zip(*cells, strict=True)]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def significant(value: float, digits: int = 3) -> str:
    """A positive number in so many digits: 1234.5 -> 1,234; 12.345 -> 12.3; 0.01234 -> 0.0123."""
    magnitude = math.floor(math.log10(float(f"{value:.{digits}g}")))  # of 0.9996 in three digits: that of 1.00
    return f"{value:,.{max(digits - 1 - magnitude, 0)}f}"


def progress(steps: Iterable, name: str, unit: str) -> tqdm:
    """A progress bar on stderr; a line a second at most where that is a log and not a terminal."""
    return tqdm(steps, name, unit=unit, mininterval=0.1 if sys.stderr.isatty() else 1)
