"""What a result was measured on: the device and the versions that key it."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
import re
import time
from collections.abc import Iterable
from pathlib import Path

import torch

import fastreg


def find_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises ValueError where there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, got {name}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"torch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices"
        raise ValueError(f"--device must name a device that is there, got {name} ({found})")
    return device


def describe(device: torch.device) -> dict:
    """Flat, but for `fastreg_build`: fastreg.build_info() as it is."""
    build = fastreg.build_info()
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else cpu_model(),
        "backend": device.type,
        "torch": torch.__version__,
        "fastreg": fastreg.__version__,
        "fastreg_code": fingerprint(),
        "fastreg_kernels": device.type in build["backends"],
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "instruction_set": build.get("instruction_set", "none"),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "python": platform.python_version(),
        "platform": " ".join((platform.system(), platform.machine(), *platform.libc_ver())),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "fastreg_build": build,
    }


def fingerprint() -> str:
    """Twelve digits that change with any file of the package, the compiled extension included."""
    folder, digest = Path(fastreg.__file__).parent, hashlib.sha256()
    for path in sorted(path for pattern in ("*.py", "_C*") for path in folder.rglob(pattern)):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def differences(first: dict, second: dict, keys: Iterable[str]) -> str:
    """`torch 2.13.0 and 2.11.0, ...` of the keys whose values differ; empty where none do."""
    different = (key for key in keys if first.get(key) != second.get(key))
    return ", ".join(f"{key} {first.get(key)} and {second.get(key)}" for key in different)


def available_memory(device: torch.device) -> int:
    """Bytes that can be allocated."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        listed = Path("/proc/meminfo").read_text()
        return int(re.search(r"^MemAvailable:\s+(\d+) kB", listed, re.MULTILINE)[1]) << 10
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return " ".join(names[0].split()) if names else platform.processor() or platform.machine()


class Contention:
    """What other programs take of the CPU time that PyTorch's threads need. Linux only; 0 elsewhere."""

    SHORTEST = 0.5  # seconds: the system counts in hundredths of one

    def __init__(self):
        self._last = time.perf_counter(), _seconds_of_others()
        self._share = 0.0

    def since_last(self) -> float:
        """The share since the last call: 0 where the cores to spare were enough for the others, at most 1.

        Calls that follow each other within half a second get the share of the half second before."""
        now = time.perf_counter(), _seconds_of_others()
        elapsed, others = (after - before for after, before in zip(now, self._last, strict=True))
        if elapsed >= self.SHORTEST:
            self._last = now
            threads = torch.get_num_threads()
            taken = others / elapsed - (os.cpu_count() - threads)
            self._share = min(max(taken / threads, 0.0), 1.0)
        return self._share


def _seconds_of_others() -> float:
    try:
        total = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, total[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - _own_seconds()


def _own_seconds() -> float:
    """Of this process and its descendants, which compile for it, the dead ones included."""
    ticks, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            ticks[int(path.parent.name)] = sum(
                map(int, fields[11:15])
            )  # user, system, and those of children waited for
    own = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(ticks.get(process, 0) for process in own) / os.sysconf("SC_CLK_TCK")


def caption(environment: dict) -> str:
    """One line for tables and charts."""
    e = environment
    parts = [e["device"]]
    if e["backend"] == "cpu":
        parts.append(f"{e['threads']} thread{'s' * (e['threads'] > 1)}, {e['instruction_set']}")
    else:
        parts.append(f"CUDA {e['cuda']}, cuDNN {e['cudnn']}")
    kernels = "" if e["fastreg_kernels"] else f" WITHOUT compiled {e['backend']} kernels"
    return " · ".join([*parts, f"torch {e['torch']}", f"fastreg {e['fastreg']}{kernels}"])
