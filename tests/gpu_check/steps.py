"""What a check is made of: phases of units, and units of commands."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.gpu_check.report import Report
from tests.gpu_check.system import System

# left out: cannot be done here; cut short: there was no time for it.
DONE, FAILED, LEFT_OUT, CUT_SHORT = "done", "failed", "left out", "cut short"


@dataclass(frozen=True)
class Outcome:
    """note: why, or the result. results: for gpu_check.json; of these, `counts` are added up over the units of a phase,
    and `failed` are lines for the list of what failed."""

    status: str
    note: str = ""
    results: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """In the project's folder. A variable of the environment that is None is removed."""

    arguments: Sequence
    environ: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """status: of a command that has ended by itself; None: it was stopped, and `ended` tells why."""

    status: int | None
    output: str
    stopped: str = ""

    @property
    def ended(self):
        """How it ended, in words."""
        if self.status is None:
            return self.stopped
        return f"ended with signal {-self.status}" if self.status < 0 else f"ended with status {self.status}"


Steps = Generator[Command, Result, Outcome]


@dataclass(frozen=True)
class Unit:
    """What can fail by itself. steps: its commands, one after the other, of the job and the seconds that there are."""

    name: str
    steps: Callable[[Job, float], Steps]
    seconds: float  # at most


@dataclass(frozen=True)
class Phase:
    """units: of the job, or an outcome where none of them can run. limit: seconds at most. estimate: seconds, of the
    job. share: how much of what is left of the budget it may take. least: seconds without which it is not begun.
    workers: units at a time. needs: phases whose products it uses. products: files without which it is not done.
    alone: nothing else runs meanwhile, so that it can take times."""

    name: str
    units: Callable[[Job], list[Unit] | Outcome]
    limit: float
    estimate: Callable[[Job], float]
    share: float = 1.0
    least: float = 5.0
    workers: Callable[[Job], int] = lambda job: 1
    needs: Sequence[str] = ()
    products: Callable[[Job], list[Path]] = lambda job: []
    needs_gpu: bool = True
    alone: bool = False


@dataclass
class Job:
    """What the phases work on. found: of machine.probe(); work: the folder of logs and builds."""

    found: Mapping
    sources: Mapping
    report: Report
    work: Path
    system: System = field(default_factory=System)
    cores: int = 1
    bundle: Path | None = None
    resume: bool = False
    cpu_timings: bool = False

    @property
    def on_gpu(self):
        return self.found["backend"] == "cuda"


def single(name, steps, seconds):
    """The units of a phase that is one."""
    return [Unit(name, steps, seconds)]
