"""What a result was measured on: the device and the versions that key it."""

from __future__ import annotations

import datetime
import platform
import re
from importlib import metadata
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
        "fastreg": metadata.version("fastreg"),
        "fastreg_kernels": device.type in build["backends"],
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "fastreg_build": build,
    }


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return " ".join(names[0].split()) if names else platform.processor() or platform.machine()


def caption(environment: dict) -> str:
    """One line for tables and charts."""
    e = environment
    parts = [e["device"]]
    if e["backend"] == "cpu":
        parts.append(f"{e['threads']} threads, {e['instruction_set']}")
    else:
        parts.append(f"CUDA {e['cuda']}, cuDNN {e['cudnn']}")
    kernels = "" if e["fastreg_kernels"] else f" WITHOUT compiled {e['backend']} kernels"
    return " · ".join([*parts, f"torch {e['torch']}", f"fastreg {e['fastreg']}{kernels}"])
