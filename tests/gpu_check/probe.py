"""Prints as JSON what torch sees of this machine: in a process of its own, which no driver or torch can take along."""

import json
import platform
import sysconfig

import torch

from bench.environment import cpu_model


def describe():
    found = {
        "backend": "cpu",
        "device": cpu_model(),
        "cpu": cpu_model(),
        "machine": platform.machine(),
        "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
        "python": platform.python_version(),
        "platform": " ".join((platform.system(), platform.machine(), *platform.libc_ver())),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if not torch.cuda.is_available():
        return found
    torch.ones(1, device="cuda").sum().item()  # the driver and torch fit each other, or this says why they do not
    properties = torch.cuda.get_device_properties(0)
    return found | {
        "backend": "cuda",
        "device": properties.name,
        "devices": torch.cuda.device_count(),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "shared_memory_per_block_bytes": properties.shared_memory_per_block_optin,
        "cudnn": torch.backends.cudnn.version(),
    }


if __name__ == "__main__":
    print(json.dumps(describe()))
