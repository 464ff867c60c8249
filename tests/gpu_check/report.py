"""gpu_check.json and logs.txt: what each phase and its units gave, written at once, so that a run that is cut off at
any second leaves what it had."""

from __future__ import annotations

import datetime
import json
import os
import sysconfig
from collections import Counter
from pathlib import Path

from tests.gpu_check.machine import ROOT

MOST_FILES, MOST_BYTES = 8, 16 << 20
LOGS_BYTES = 12 << 20  # of all logs together
FIRST_LINES, LAST_LINES, LINE_LENGTH = 5, 40, 200
RUNNING = "running"


def shortened(text):
    """Without the paths of this machine."""
    for path, short in ((ROOT, "."), (sysconfig.get_path("purelib"), "site-packages"), (Path.home(), "~")):
        if str(path) != "/":
            text = text.replace(str(path), short)
    return text


def trimmed(log):
    """The first and last lines of a log."""
    # A progress bar writes one line over and over.
    log = shortened(log)
    lines = [line.rstrip().rsplit("\r", 1)[-1][:LINE_LENGTH] for line in log.rstrip().split("\n")] if log else []
    left_out = len(lines) - FIRST_LINES - LAST_LINES
    if left_out <= 0:
        return lines
    return [*lines[:FIRST_LINES], f"... {left_out} lines ...", *lines[-LAST_LINES:]]


class Report:
    """The results in a folder, of one device. What is done counts with these sources and this torch alone.

    problem: why they could not be written, or None; what is not on disk then is kept, and written with what follows."""

    def __init__(self, folder, device, torch, sources):
        self.folder, self.problem = folder, None
        self._now = {**sources, "torch": torch}
        self._path = folder / "gpu_check.json"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._document = json.loads(self._path.read_text())
        except FileNotFoundError:
            self._document = {"device": device, "phases": {}}
        if self._document["device"] != device:
            raise ValueError(f"{folder} holds results of {self._document['device']}, and this is {device}")

    def begin(self, phase, keep):
        """keep: of a phase that was begun before, what is done with these sources."""
        units = self._phase(phase)["units"] if keep and phase in self._document["phases"] else {}
        units = {name: unit for name, unit in units.items() if unit["status"] == "done" and self._is_current(unit)}
        self._document["phases"][phase] = {"status": RUNNING, "note": "", "failed": [], **self._now, "units": units}

    def begin_unit(self, phase, unit):
        """So that the file tells what ran when it was written last."""
        self._phase(phase)["units"][unit] = {"status": RUNNING, "note": "", **self._now}
        self._write()

    def record_unit(self, phase, unit, outcome, seconds, log):
        """Its outcome; the whole log goes to logs.txt, its ends to gpu_check.json where it has failed."""
        keep = trimmed(log) if outcome.status not in ("done", "left out") else []
        self._phase(phase)["units"][unit] = {
            "status": outcome.status,
            "note": shortened(outcome.note),
            "results": dict(outcome.results),
            "seconds": round(seconds, 1),
            **self._now,
            "log": keep,
        }
        self._summarise(phase)
        self._append(f"{phase}: {unit}: {outcome.status}: {outcome.note}", log)
        self._write()

    def finish(self, phase, seconds):
        """After its last unit."""
        record = self._phase(phase)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        record |= {"seconds": round(seconds, 1), "finished": now}
        record["status"] = _status([unit["status"] for unit in record["units"].values()])
        self._write()

    def _phase(self, name):
        return self._document["phases"][name]

    def _summarise(self, phase):
        """A phase's note and what failed in it, of its units."""
        record = self._phase(phase)
        units, counts, failed = record["units"], Counter(), []
        for name, unit in units.items():
            prefix = phase if name == phase else f"{phase}: {name}"
            results = unit.get("results", {})
            counts.update(results.get("counts", {}))
            lines = list(results.get("failed", []))
            begun = name == phase or "not begun" not in unit["note"]  # the others are counted
            if unit["status"] in ("failed", "cut short") and begun and not lines:
                lines = [unit["note"] if unit["status"] == "failed" else f"{unit['status']}: {unit['note']}"]
            failed += [f"{prefix}: {line}" for line in lines]
        if list(units) == [phase]:
            record["note"] = units[phase]["note"]
        else:
            kinds = Counter(unit["status"] for unit in units.values())
            listed = [f"{count} {status}" for status, count in kinds.items()]
            record["note"] = "; ".join(
                filter(None, [", ".join(listed), ", ".join(f"{n} {k}" for k, n in counts.items())])
            )
        record["failed"] = failed

    def _append(self, title, log):
        path = self.folder / "logs.txt"
        try:
            if (path.stat().st_size if path.exists() else 0) < LOGS_BYTES:
                with path.open("a") as file:
                    file.write(f"=== {title}\n{shortened(log)[-LOGS_BYTES // 8 :]}\n")
        except OSError as error:
            self.problem = f"{path}: {error}"

    def _write(self):
        """Whole or not at all."""
        scratch = self._path.with_suffix(".json.new")
        try:
            scratch.write_text(json.dumps(self._document, indent=1) + "\n")
            os.replace(scratch, self._path)
        except OSError as error:
            self.problem = f"{self._path}: {error}"
        else:
            self.problem = None

    def _is_current(self, record):
        return all(record[name] == self._now[name] for name in ("fingerprint", "torch"))

    def is_done(self, phase, unit=None):
        """With these sources."""
        record = self._document["phases"].get(phase)
        if record and unit:
            record = record["units"].get(unit)
        return bool(record) and record["status"] == "done" and self._is_current(record)

    def status(self, phase):
        """Of what was run with these sources; None where nothing was."""
        record = self._document["phases"].get(phase)
        return record["status"] if record and self._is_current(record) else None

    def log_of(self, phase, unit):
        """The ends of a unit's log."""
        return self._phase(phase)["units"][unit]["log"]

    def lines(self, phase):
        """What there is of a phase: a line, and one for each thing that failed."""
        record = self._document["phases"].get(phase)
        if not record:
            return [f"not run: {phase}"]
        if not self._is_current(record):
            before = f"{record['status']} on {record.get('finished', '?')[:10]}, commit {str(record['commit'])[:12]}"
            return [f"not run with these sources: {phase} ({before})"]
        note = f": {record['note']}" if record["note"] else ""
        failed = record["failed"] if list(record["units"]) != [phase] or len(record["failed"]) > 1 else []
        return [f"{record['status']}: {phase}{note}", *(f"  - {line}" for line in failed)]

    def too_much(self):
        """What is wrong with the number and sizes of the files, or None."""
        sizes = {path.name: path.stat().st_size for path in sorted(self.folder.iterdir())}
        if len(sizes) > MOST_FILES:
            return f"{self.folder} must hold at most {MOST_FILES} files, got {len(sizes)}: {', '.join(sizes)}"
        large = [name for name, size in sizes.items() if size > MOST_BYTES]
        return f"files in {self.folder} must have at most {MOST_BYTES >> 20} MiB: {', '.join(large)}" if large else None


def _status(statuses):
    """Of a phase, by its units': the worst."""
    for status in ("failed", "cut short", RUNNING):
        if status in statuses:
            return status
    return "left out" if statuses and set(statuses) == {"left out"} else "done"
