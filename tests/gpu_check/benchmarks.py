"""The benchmarks: parts of `python -m bench`, which goes on in a new process where a case ends it."""

from __future__ import annotations

import json
import sys

from tests.gpu_check import machine
from tests.gpu_check.steps import DONE, FAILED, LEFT_OUT, Command, Outcome, single

BROKEN_DEVICE, BAD_INPUT = 3, 2  # bench's exit statuses
FULL = {"end-to-end": [], "training": ["--epochs", "20"]}
SECONDS_BESIDE = 30  # of a part that is told how long to time: imports, compilers, the last case


def part(name, seconds):
    """The units of the phase that runs the part for so long at most."""

    def units(job):
        if not job.on_gpu and not job.cpu_timings:
            return Outcome(LEFT_OUT, "needs a GPU; --cpu-timings times the CPU backend")
        if missing := machine.missing(machine.requirements("bench")):
            return Outcome(FAILED, missing)
        return single(f"bench.{name}", lambda job, seconds: _run(job, name, seconds), seconds)

    return units


def _run(job, name, seconds):
    folder, backend = job.report.folder, job.found["backend"]
    deadline, resume, kept = job.system.now() + seconds, job.resume, -1
    while True:
        left = deadline - job.system.now()
        command = [sys.executable, "-m", "bench", "--only", name, "--device", backend, "--out", folder, "--json-only"]
        command += ["--disturbed"]  # what a machine has to tell is kept, and says itself whether it was alone
        command += ["--minutes", f"{max(left - SECONDS_BESIDE, 10) / 60:.2f}", *FULL.get(name, [])]
        before = _written(folder, name)
        result = yield Command(command + ["--resume"] * resume, {"FASTREG_EXPECT": backend, "PYTHONUNBUFFERED": "1"})
        written = _written(folder, name)
        new = [path for path, when in written.items() if when != before.get(path)]
        if result.status == BAD_INPUT and resume and kept < 0:  # what is there is of other sources or another machine
            resume = False
            continue
        if not new:
            said = "".join(result.output.strip().splitlines()[-1:])
            return Outcome(FAILED, f"bench {result.ended} and wrote nothing" + (f": {said[:200]}" if said else ""))
        document = json.loads(new[0].read_text())
        progress = len(document.get("rows", document.get("runs", []))) + len(document.get("failed", []))
        died = result.status not in (None, 0, 130) and not document["complete"]
        if died and progress > kept and left > SECONDS_BESIDE:
            resume, kept = True, progress  # the case that ended it is listed, and will be skipped
            continue
        return outcome(result, document, job.found)


def _written(folder, name):
    """When each of the part's files was last written."""
    paths = [folder / f"{name}.json", folder / f"{name}.partial.json"]
    return {path: path.stat().st_mtime_ns for path in paths if path.exists()}


def outcome(result, document, found):
    """Of what the benchmarks wrote: on this device, with fastreg's own kernels, and whole. A peer that fails is listed,
    and no failure."""
    described, failures = document["environment"], document.get("failed", [])
    rows = document.get("rows", document.get("runs", []))
    where = (described["backend"], described["device"])
    failed = [_line(failure) for failure in failures]
    results = {"rows": len(rows), "complete": document["complete"], "failed": failed}
    if where != (found["backend"], found["device"]):
        return Outcome(FAILED, f"the timings are of {where}, not of {found['device']}", results | {"failed": []})
    if not described["fastreg_kernels"]:
        return Outcome(FAILED, "the timings are without fastreg's kernels", results | {"failed": []})
    note = f"{len(rows)} rows" + (f", {len(failed)} failures" if failed else "")
    if result.status not in (0, 1) or not document["complete"] or not rows:
        stopped = f"{result.ended}; {note} are kept"
        return Outcome(FAILED, stopped, results | {"failed": [*failed, stopped]})
    ours = [failure for failure in failures if failure["provider"] in ("fastreg", "all")]
    return Outcome(FAILED if ours or result.status else DONE, note, results)


def _line(failure):
    case = " ".join(str(value) for key, value in failure.items() if key not in ("provider", "error"))
    return f"{failure['provider']}: {case}: {failure['error']}"
