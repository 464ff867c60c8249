"""Time and processes, as the runner sees them: the tests put fakes in their place."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.gpu_check.machine import ROOT

TOKEN = "FASTREG_GPU_CHECK"  # in the environment of all that a command starts, by which its processes are found


def heed_interrupts():
    """Interrupts end this process, also where it was started in the background by a shell that made it ignore them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Process:
    """A command that runs, with all that it starts."""

    def __init__(self, command, log, environ):
        self._token = secrets.token_hex(8)
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
            env={**environ, TOKEN: self._token}, start_new_session=True, preexec_fn=heed_interrupts,
        )  # fmt: skip

    def poll(self):
        """The exit status; None while it runs."""
        return self._process.poll()

    def interrupt(self):
        """Ask it to end: a build's compilers and a sanitizer's program, too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)

    def kill(self):
        """End it, and whatever it has left, in sessions of their own, too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def left(self):
        """Its processes that still run; where there is no /proc, none is found."""
        mark = f"{TOKEN}={self._token}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is not ours
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found


class System:
    """The machine itself."""

    def now(self):
        """Seconds, from some time on."""
        return time.monotonic()

    def sleep(self, seconds):
        time.sleep(seconds)

    def start(self, command, log, environ):
        """A Process of a command whose output goes to an open file."""
        return Process(command, log, environ)

    def free_bytes(self, folder):
        """Of the disk that a folder is on."""
        return shutil.disk_usage(folder).free
