"""A part of a job: run it, print its table, write its files and chart, also when it is cut short."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import environment, results

PARTIAL = " (partial: interrupted)"


@dataclass(frozen=True)
class Part:
    """Its rows, in the batches in which they come; a table, a chart and files of the rows."""

    title: str
    rows: Callable[[], Iterator[list[dict]]]
    report: Callable[[list[dict]], str]
    chart: Callable[[list[dict], str, str, Path], None]
    write: Callable[[Path, str, dict, list[dict], bool], list[Path]] = results.write_results

    def run(self, name: str, folder: Path, described: dict) -> bool:
        """Writes `name.*` to the folder. Returns whether it was complete, which Ctrl-C prevents."""
        rows, complete = [], False
        contention = environment.Contention()
        try:
            for batch in self.rows():
                share = contention.since_last()
                rows += [row | {"contention": share} for row in batch]
            complete = True
        except KeyboardInterrupt:
            print(f"\n{name}: interrupted, keeping what there is", file=sys.stderr)
        finally:
            caption = environment.caption(described)
            title = self.title if complete else self.title + PARTIAL
            paths = self.write(folder, name, described, rows, complete)
            if rows:
                share = statistics.mean(row["contention"] for row in rows)
                if share > results.CONTENDED:
                    caption += f" · NOT ALONE: other programs took {share:.0%} of the CPU time"
                paths.append(results.result_path(folder, name, "png", complete))
                self.chart(rows, title, caption, paths[-1])
                print(f"\n{title}\n{caption}\n\n{self.report(rows)}\n")
            print("wrote", *paths, flush=True)
        return complete
