"""What the tests of tests/gpu_check run on: a clock and processes that are fakes, machines, sources, folders."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.gpu_check import report
from tests.gpu_check.steps import Command, Job, Outcome, Phase, Unit

GPU = {"backend": "cuda", "device": "Abacus 9000", "capability": "9.0", "torch": "2.0", "cuda": "13.0"}
GPU |= {"machine": "x86_64", "suffix": ".cpython-312-x86_64-linux-gnu.so"}
CPU = {"backend": "cpu", "device": "Slide Rule", "torch": "2.0", "cuda": None}
SOURCES = {"commit": "c0ffee", "modified": False, "fingerprint": "1"}


@dataclass
class Script:
    """What a command does: its output at once, `effect(command)` at the end, and its status after so many seconds; past
    an interrupt it goes on for `deaf` seconds more."""

    seconds: float = 1.0
    output: str = ""
    status: int = 0
    effect: object = None
    deaf: float = 0.5
    at_start: object = None


HANGS = 1e9


class FakeProcess:
    def __init__(self, system, script, command):
        self._system, self._script, self._command = system, script, command
        self._end, self._status = system.now() + script.seconds, script.status
        self._ended = False

    def poll(self):
        if self._system.now() < self._end:
            return None
        if not self._ended:
            self._ended = True
            if self._script.effect and self._status == self._script.status:
                self._script.effect(self._command)
        return self._status

    def interrupt(self):
        self._system.interrupted.append(self._command)
        if self._script.seconds:
            self._end, self._status = self._system.now() + self._script.deaf, 130

    def kill(self):
        if self.poll() is None:
            self._end, self._status = self._system.now(), -9
            self._ended = True


class FakeSystem:
    """scripts: (pattern, Script) pairs, the first that matches a command's words. Time passes in `sleep` alone."""

    def __init__(self, *scripts):
        self.scripts = list(scripts)
        self.started, self.interrupted, self.processes, self.free = [], [], [], 1 << 40
        self.during = {}  # time -> what happens then
        self._now = 1000.0

    def now(self):
        return self._now

    def sleep(self, seconds):
        self._now += seconds
        for when in [when for when in self.during if self._now - 1000 >= when]:
            self.during.pop(when)()

    def start(self, command, log, environ):
        text = " ".join(map(str, command))
        script = next((script for pattern, script in self.scripts if re.search(pattern, text)), Script())
        self.started.append((round(self._now - 1000), text))
        log.write(script.output)
        log.flush()
        if script.at_start:
            script.at_start(text)
        self.processes.append(FakeProcess(self, script, text))
        return self.processes[-1]

    def free_bytes(self, folder):
        return self.free

    def commands(self, pattern=""):
        return [text for _, text in self.started if re.search(pattern, text)]

    @property
    def left(self):
        """Processes that still run."""
        return [process for process in self.processes if process.poll() is None]


def make_job(folder, found=GPU, sources=SOURCES, system=None, **options):
    results = report.Report(folder / "results", found["device"], found["torch"], sources)
    (folder / "work").mkdir(exist_ok=True)
    return Job(found, sources, results, folder / "work", system or FakeSystem(), cores=16, **options)


def unit(name, seconds=60, judge=None):
    """One command, of its name; the outcome is "done" with status 0, or what judge(result) gives."""

    def steps(job, left):
        result = yield Command([name])
        return judge(result) if judge else Outcome("done" if result.status == 0 else "failed", result.ended)

    return Unit(name, steps, seconds)


def phase(name, *units, limit=100.0, **options):
    """A phase of units; by default of one that has its name."""
    units = list(units) or [unit(name, limit)]
    return Phase(name, lambda job: units, limit=limit, estimate=lambda job: 10, **{"least": 1.0} | options)


def records(folder):
    import json

    return json.loads((Path(folder) / "gpu_check.json").read_text())["phases"]
