"""gpu_check.json: what each phase gave, written whenever one has ended."""

from __future__ import annotations

import datetime
import json
import os
import sysconfig
from pathlib import Path

from tests.gpu_check.machine import ROOT

MOST_FILES = 8
FIRST_LINES, LAST_LINES, LINE_LENGTH = 5, 40, 200


def trimmed(log):
    """The first and last lines of a log, without the paths of this machine."""
    for path, short in ((ROOT, "."), (sysconfig.get_path("purelib"), "site-packages"), (Path.home(), "~")):
        if str(path) != "/":
            log = log.replace(str(path), short)
    # A progress bar writes one line over and over.
    lines = [line.rstrip().rsplit("\r", 1)[-1][:LINE_LENGTH] for line in log.rstrip().split("\n")] if log else []
    left_out = len(lines) - FIRST_LINES - LAST_LINES
    if left_out <= 0:
        return lines
    return [*lines[:FIRST_LINES], f"... {left_out} lines ...", *lines[-LAST_LINES:]]


class Report:
    """The results in a folder, of one device. A phase counts as done with these sources and this torch alone."""

    def __init__(self, folder, device, torch, sources):
        self.folder = folder
        self._now = {**sources, "torch": torch}
        self._path = folder / "gpu_check.json"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._document = json.loads(self._path.read_text())
        except FileNotFoundError:
            self._document = {"device": device, "phases": {}}
        if self._document["device"] != device:
            raise ValueError(f"{folder} holds results of {self._document['device']}, and this is {device}")

    def record(self, name, outcome, seconds, log):
        """Set a phase's result, and write the file: whole or not at all."""
        finished = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self._document["phases"][name] = {
            "status": outcome.status,
            "note": outcome.note,
            "results": outcome.results,
            "seconds": round(seconds, 1),
            "finished": finished,
            **self._now,
            "log": trimmed(log),
        }
        scratch = self._path.with_suffix(".json.new")
        scratch.write_text(json.dumps(self._document, indent=1) + "\n")
        os.replace(scratch, self._path)

    def current(self, name):
        """The phase's record with these sources, or None."""
        record = self._document["phases"].get(name)
        same = record and all(record[name] == self._now[name] for name in ("fingerprint", "torch"))
        return record if same else None

    def is_done(self, name):
        return (self.current(name) or {}).get("status") == "done"

    def line(self, name):
        """What there is of a phase, in one line."""
        if record := self.current(name):
            return f"{record['status']}: {name}" + (f": {record['note']}" if record["note"] else "")
        if record := self._document["phases"].get(name):
            before = f"{record['status']} on {record['finished'][:10]}, commit {str(record['commit'])[:12]}"
            return f"not run with these sources: {name} ({before})"
        return f"not run: {name}"

    def too_many_files(self):
        """What is wrong with the number of files, or None."""
        names = sorted(path.name for path in self.folder.iterdir())
        if len(names) <= MOST_FILES:
            return None
        return f"{self.folder} must hold at most {MOST_FILES} files, got {len(names)}: {', '.join(names)}"
