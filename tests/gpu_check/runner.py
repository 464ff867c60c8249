"""Runs phases one after another; what goes wrong in one does not stop the others."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.gpu_check.machine import ROOT, child_environ
from tests.gpu_check.report import Report

DONE, FAILED, LEFT_OUT = "done", "failed", "left out"
SECONDS_TO_END = 20  # that an interrupted command has to write what it has


@dataclass(frozen=True)
class Outcome:
    """status: DONE, FAILED (should have worked here) or LEFT_OUT (cannot be done here); note: why, or the result."""

    status: str
    note: str = ""
    results: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """needs: the phases whose products it uses. products: files without which it is not done, from the job."""

    name: str
    run: Callable[[Job], Outcome]
    needs: Sequence[str] = ()
    products: Callable[[Job], list[Path]] = lambda job: []
    needs_gpu: bool = True


@dataclass
class Job:
    """What the phases work on. found: of probe.probe(); work: the folder of logs and builds."""

    found: dict
    sources: dict
    report: Report
    work: Path
    seconds: float  # that a phase may take
    cpu_timings: bool = False
    log: Path = Path()  # of the phase that runs
    deadline: float = 0

    def command(self, *command, **environ):
        """Run a command, its output appended to the log: (exit status, output). The status is None past the limit."""
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(map(str, command))}\n")
            log.flush()
            begin = log.tell()
            status = _run(list(map(str, command)), log, self.deadline - time.monotonic(), child_environ(**environ))
        with self.log.open(errors="replace") as log:
            log.seek(begin)
            return status, log.read()


def heed_interrupts():
    """Interrupts end this process, also where it was started in the background by a shell that made it ignore them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(command, log, seconds, environ):
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environ,
        start_new_session=True, preexec_fn=heed_interrupts,
    )  # fmt: skip
    try:
        return process.wait(max(seconds, 0))
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
        # To all of its processes, and not only to the first: a build's compilers, a sanitizer's program.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(reason, KeyboardInterrupt):
            raise
        return None


def _outcome(phase, job):
    if phase.needs_gpu and job.found["backend"] != "cuda":
        return Outcome(LEFT_OUT, "needs a GPU")
    if unmet := [name for name in phase.needs if not job.report.is_done(name)]:
        return Outcome(FAILED, f"needs {', '.join(unmet)}, which is not done with these sources")
    try:
        return phase.run(job)
    except Exception as error:  # of a phase's own code: the others can still run
        with job.log.open("a") as log:
            traceback.print_exc(file=log)
        return Outcome(FAILED, f"{type(error).__name__}: {error}")


def run_phases(phases, job, resume=False, say=print):
    """Run the phases, each recorded as it ends. Returns whether none failed. Raises KeyboardInterrupt on Ctrl-C."""
    succeeded = True
    for phase in phases:
        if resume and job.report.is_done(phase.name) and all(path.exists() for path in phase.products(job)):
            say(f"{phase.name}: already done")
            continue
        job.log = job.work / f"{phase.name}.log"
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_text("")
        say(f"{phase.name} ... ({os.path.relpath(job.log)})")
        begin = time.monotonic()
        job.deadline = begin + job.seconds
        outcome = Outcome(FAILED, "interrupted")
        try:
            outcome = _outcome(phase, job)
        finally:
            job.report.record(phase.name, outcome, time.monotonic() - begin, job.log.read_text(errors="replace"))
        say(f"  {time.monotonic() - begin:.0f} s, {job.report.line(phase.name)}")
        if outcome.status == FAILED:
            succeeded = False
            for line in job.report.current(phase.name)["log"][-15:]:
                say(f"  | {line}")
    return succeeded
