"""`python -m bench.redraw [DIR...]`: draw the charts of result folders again, from their JSON files alone."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from bench import part, parts, results
from bench.training import data, experiments


def _chosen(folder: Path) -> dict[str, dict[str, part.Chart]]:
    """Of what `make gpu-check` leaves, one chart: the speeds of the timings, or of the short table."""
    if not (folder / "gpu_check.json").exists():
        return parts.CHARTS
    name = "timings" if results.latest(folder, "timings") else "short"
    return {name: {"": parts.CHARTS[name][""]}}


def redraw(folder: Path) -> list[Path]:
    """The charts that were drawn."""
    drawn = []
    for name, charts in _chosen(folder).items():
        if path := results.latest(folder, name):
            document = results.read_document(path)
            caption = part.full_caption(document["environment"], document["rows"])
            for suffix, chart in charts.items() if document["rows"] else ():
                drawn.append(folder / f"{name}{suffix}.png")
                chart(document["rows"], parts.TITLES[name], caption, drawn[-1])
    for path in sorted((folder / "training").glob("*.json")):
        document = json.loads(path.read_text())
        rows = [row for run in document["runs"] for row in _by_epoch(run)]
        about = document["data"]
        described = data.describe(about["name"], about["stands_in_for"])
        title = experiments.ALL[document["experiment"]].title
        drawn.append(path.with_suffix(".png"))
        experiments.draw(
            document["experiment"], described, rows, title, part.full_caption(document["environment"], rows), drawn[-1]
        )
    return drawn


def _by_epoch(run: dict) -> list[dict]:
    """A run of the file as the rows that it was made of: an entry of its lists each."""
    lists = {key: value for key, value in run.items() if isinstance(value, list)}
    always = {key: value for key, value in run.items() if key not in lists}
    rows = []
    for index in range(len(next(iter(lists.values())))):
        values = {key: math.nan if value[index] is None else value[index] for key, value in lists.items()}
        rows.append(always | {"epoch": index + 1} | values)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.redraw", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="default: all in bench/results")
    folders = parser.parse_args(argv).folders or sorted(Path("bench/results").iterdir())
    try:
        for folder in folders:
            drawn = redraw(folder)
            print("drew", *drawn) if drawn else print(f"no results in {folder}", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"bench.redraw: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
