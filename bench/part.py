"""A part of a job: run it, print its table, write its files and chart, also when it is cut short."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import environment, failures, quiet, results

PARTIAL = " (partial: interrupted)"
Chart = Callable[[list[dict], str, str, Path], None]  # of the rows, with a title and a caption, to a PNG file


@dataclass(frozen=True)
class Part:
    """Its rows, in the batches in which they come; a table, charts and files of the rows.

    charts: by what their files' names end in. kept: rows of a run before, that this one goes on from. failed: what
    `rows` could not measure, added by it. at_once: the files are written after each batch, so that a run that is killed
    leaves what it had."""

    title: str
    rows: Callable[[], Iterator[list[dict]]]
    report: Callable[[list[dict]], str]
    charts: Mapping[str, Chart]
    write: Callable[..., list[Path]] = results.write_results
    kept: Sequence[dict] = ()
    failed: list[dict] = field(default_factory=list)
    at_once: bool = False

    def run(self, name: str, folder: Path, described: dict, guarded: bool = False) -> bool:
        """Writes `name.*` to the folder. Returns whether it was complete, which Ctrl-C prevents.

        Raises:
            Disturbed: the folder is guarded, and other programs ran: the files are elsewhere.
        """
        rows, complete = list(self.kept), False
        scratch = quiet.refuge(folder) if guarded else folder  # as long as it is not known whether they are to be kept
        results.prepare_folder(scratch)
        contention = environment.Contention()
        batches = self.rows()
        try:
            for batch in batches:
                share = contention.since_last()
                rows += [row | {"contention": share} for row in batch]
                if self.at_once and (rows or self.failed):
                    self._write(scratch, name, described, rows, complete)
            complete = True
        except KeyboardInterrupt:
            print(f"\n{name}: interrupted, keeping what there is", file=sys.stderr)
        finally:
            if close := getattr(batches, "close", None):
                close()  # a case that was interrupted did not fail
            if guarded:
                results.result_path(scratch, name, "json", complete=True)  # the rows so far go with the others
                folder = quiet.folder_of(rows, folder)
            caption = full_caption(described, rows)
            title = self.title if complete else self.title + PARTIAL
            paths = self._write(folder, name, described, rows, complete)
            if rows:
                for suffix, chart in self.charts.items():
                    paths.append(results.result_path(folder, name + suffix, "png", complete))
                    chart(rows, title, caption, paths[-1])
                print(f"\n{title}\n{caption}\n\n{self.report(rows)}\n")
            for failure in self.failed:
                print(f"failed: {failures.describe(failure)}")
            print("wrote", *paths, flush=True)
        if guarded and folder == scratch:
            raise quiet.Disturbed(f"{name}: other programs took {quiet.share(rows):.0%} of the CPU time: see {folder}")
        return complete

    def _write(self, folder: Path, name: str, described: dict, rows: list[dict], complete: bool) -> list[Path]:
        failed = {"failed": self.failed} if self.failed else {}
        return self.write(folder, name, described, rows, complete, **failed)


def full_caption(described: dict, rows: list[dict]) -> str:
    """The environment in one line, and whether other programs ran in it."""
    caption = environment.caption(described)
    if (share := quiet.share(rows)) > results.CONTENDED:
        caption += f" · NOT ALONE: other programs took {share:.0%} of the CPU time"
    return caption
