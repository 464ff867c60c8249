"""Runs phases in order of worth, some side by side, within a budget; what goes wrong costs its own unit."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import traceback
from collections import deque

from tests.gpu_check.machine import child_environ
from tests.gpu_check.steps import CUT_SHORT, FAILED, LEFT_OUT, Outcome, Result

SECONDS_TO_END = 6  # that an interrupted command has to write what it has
RESERVE = SECONDS_TO_END + 2  # of a budget: after the last second in which something may run
TICK = 0.05
FULL_DISK = 64 << 20  # bytes that are left
LONGEST_OUTPUT = 4 << 20  # bytes of a command's, the last ones, that are looked at


class Task:
    """A unit that runs, command after command."""

    def __init__(self, unit, job, phase, deadline, spent, own):
        """deadline: the end of its time. spent: why it is then, in words. own: it is the unit's limit, past which it
        has failed; else there was no time for it."""
        self.unit, self.job, self.deadline, self._own = unit, job, deadline, own
        self.begun = job.system.now()
        self.log = job.work / "logs" / phase / f"{re.sub(r'[^A-Za-z0-9.]+', '_', unit.name)}.log"
        self._spent, self._process, self._kill_at, self._begin = spent, None, None, 0
        self._steps = unit.steps(job, deadline - self.begun)

    def advance(self):
        """The outcome, once there is one."""
        try:
            if self._process is None:
                self.log.parent.mkdir(parents=True, exist_ok=True)
                self.log.write_text("")
                return self._next(None)
            status = self._process.poll()
            if status is None:
                self._stop_when_late()
                return None
            self._process.kill()  # what it left behind
            stopped = self._kill_at is not None
            return self._next(Result(None if stopped else status, self._output(), self._spent))
        except StopIteration as ended:
            return self._told(ended.value)
        except Exception as error:  # of the code of a phase, or of a full disk: the others can still run
            self._end()
            with contextlib.suppress(OSError), self.log.open("a") as log:
                traceback.print_exc(file=log)
            return self._told(Outcome(FAILED, f"{type(error).__name__}: {error}"))

    def stop(self, why):
        """Before its time: `advance` gives an outcome soon."""
        self.deadline, self._spent, self._own = -math.inf, why, False

    def read_log(self):
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")
        return ""

    def _next(self, result):
        command = self._steps.send(result)
        if self.job.system.now() >= self.deadline:
            self._steps.close()
            return Outcome(CUT_SHORT, self._spent)
        self._kill_at = None
        environ = child_environ(**command.environ)
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(map(str, command.arguments))}\n")
            log.flush()
            self._begin = log.tell()
            self._process = self.job.system.start(command.arguments, log, environ)
        return None

    def _output(self):
        with self.log.open("rb") as log:
            log.seek(max(self._begin, log.seek(0, os.SEEK_END) - LONGEST_OUTPUT))
            return log.read().decode(errors="replace")

    def _stop_when_late(self):
        now = self.job.system.now()
        if self._kill_at is None and now >= self.deadline:
            self._process.interrupt()
            self._kill_at = now + SECONDS_TO_END
        elif self._kill_at is not None and now >= self._kill_at:
            self._process.kill()

    def _end(self):
        if self._process is not None:
            self._process.kill()

    def _told(self, outcome):
        if outcome.status == FAILED and self._kill_at is not None and not self._own:
            return Outcome(CUT_SHORT, outcome.note, outcome.results)
        with contextlib.suppress(OSError):
            if outcome.status == FAILED and self.job.system.free_bytes(self.job.work) < FULL_DISK:
                return Outcome(FAILED, f"{outcome.note}; the disk is full", outcome.results)
        return outcome


class Active:
    """A phase that runs."""

    def __init__(self, phase, units, begun, deadline, spent):
        self.phase, self.begun, self.deadline, self.spent = phase, begun, deadline, spent
        self.waiting, self.running = deque(units), []


class Run:
    """budget: seconds for all, what it takes to end included; None: as long as it takes."""

    def __init__(self, phases, job, budget=None, say=print):
        self.job, self.say, self.stopped_by = job, say, None
        self._waiting, self._active = deque(phases), []
        self._start = job.system.now()
        self._end = math.inf if budget is None else self._start + budget - RESERVE
        self._succeeded = True

    def go(self):
        """Whether nothing failed. Ends early where `stopped_by` is set to a signal's number meanwhile."""
        try:
            while (self._waiting or self._active) and not self.stopped_by:
                while self._waiting and self._may_begin(self._waiting[0]):
                    self._begin(self._waiting.popleft())
                for active in list(self._active):
                    self._advance(active)
                if self._active:
                    self.job.system.sleep(TICK)
        finally:
            self._stop()
        return self._succeeded and not self.stopped_by

    def _may_begin(self, phase):
        """In order, so that what is worth more has begun; not beside what is timed, nor before what it needs."""
        if any(active.phase.alone or active.phase.name in phase.needs for active in self._active):
            return False
        return not (phase.alone and self._active)

    def _begin(self, phase):
        now, left = self.job.system.now(), self._end - self.job.system.now()
        seconds = min(phase.limit, phase.share * left)
        units = self._units(phase, left, seconds)
        if isinstance(units, Outcome):
            self._record(phase, units)
            return
        if units is None:
            self.say(f"{self._clock()} {phase.name}: already done")
            return
        # A limit of its own, or the end of all: what is said of a unit that is stopped.
        spent = f"ran past the limit of {phase.limit:.0f} s" if seconds >= phase.limit else "stopped: no time is left"
        self.say(f"{self._clock()} {phase.name} ... {len(units)} to run, at most {seconds:.0f} s")
        self._active.append(Active(phase, units, now, now + seconds, spent))

    def _units(self, phase, left, seconds):
        """What is to run; None where all is done; an outcome where nothing can."""
        job, report = self.job, self.job.report
        if phase.needs_gpu and not job.on_gpu:
            return Outcome(LEFT_OUT, "needs a GPU")
        if unmet := [name for name in phase.needs if not report.is_done(name)]:
            kind = CUT_SHORT if all(report.status(name) == CUT_SHORT for name in unmet) else FAILED
            return Outcome(kind, f"needs {', '.join(unmet)}, which is not done with these sources")
        there = all(path.exists() for path in phase.products(job))
        if job.resume and there and report.is_done(phase.name):
            return None
        if seconds < phase.least:
            return Outcome(CUT_SHORT, f"not begun: {max(left, 0):.0f} s are left")
        try:
            units = phase.units(job)
        except Exception as error:
            return Outcome(FAILED, f"{type(error).__name__}: {error}")
        if isinstance(units, Outcome):
            return units
        keep = job.resume and there
        report.begin(phase.name, keep)
        return [unit for unit in units if not (keep and report.is_done(phase.name, unit.name))]

    def _advance(self, active):
        now = self.job.system.now()
        for task in list(active.running):
            outcome = task.advance()
            if outcome is not None:
                active.running.remove(task)
                self._record_unit(active.phase, task, outcome)
        while active.waiting and len(active.running) < active.phase.workers(self.job) and now < active.deadline:
            self._begin_unit(active, active.waiting.popleft(), now)
        if not active.running and (not active.waiting or now >= active.deadline):
            self._finish(active, active.spent)

    def _begin_unit(self, active, unit, now):
        own = now + unit.seconds <= active.deadline
        deadline = now + unit.seconds if own else active.deadline
        spent = f"ran past the limit of {unit.seconds:.0f} s" if own else active.spent
        task = Task(unit, self.job, active.phase.name, deadline, spent, own)
        active.running.append(task)
        self.job.report.begin_unit(active.phase.name, unit.name)

    def _record_unit(self, phase, task, outcome):
        seconds, log = self.job.system.now() - task.begun, task.read_log()
        self.job.report.record_unit(phase.name, task.unit.name, outcome, seconds, log)
        if outcome.status == FAILED:
            self._succeeded = False
        name = phase.name if task.unit.name == phase.name else f"{phase.name}: {task.unit.name}"
        self.say(f"{self._clock()} {outcome.status}: {name}: {outcome.note} ({seconds:.0f} s)")
        if outcome.status == FAILED:
            for line in self.job.report.log_of(phase.name, task.unit.name)[-12:]:
                self.say(f"  | {line}")

    def _finish(self, active, why):
        self._active.remove(active)
        for unit in active.waiting:
            self.job.report.record_unit(active.phase.name, unit.name, Outcome(CUT_SHORT, f"not begun: {why}"), 0, "")
        self.job.report.finish(active.phase.name, self.job.system.now() - active.begun)

    def _record(self, phase, outcome):
        self.job.report.begin(phase.name, keep=self.job.resume)
        self.job.report.record_unit(phase.name, phase.name, outcome, 0, "")
        self.job.report.finish(phase.name, 0)
        self._succeeded &= outcome.status != FAILED
        self.say(f"{self._clock()} {outcome.status}: {phase.name}: {outcome.note}")

    def _stop(self):
        """End all that runs; nothing is left behind."""
        why = f"interrupted by {signal.Signals(self.stopped_by).name}" if self.stopped_by else "interrupted"
        tasks = [(active, task) for active in self._active for task in active.running]
        for _, task in tasks:
            task.stop(why)
        while tasks:
            for active, task in list(tasks):
                outcome = task.advance()
                if outcome is not None:
                    tasks.remove((active, task))
                    active.running.remove(task)
                    self._record_unit(active.phase, task, outcome)
            if tasks:
                self.job.system.sleep(TICK)
        for active in list(self._active):
            self._finish(active, why)

    def _clock(self):
        return f"[{self.job.system.now() - self._start:4.0f} s]"
