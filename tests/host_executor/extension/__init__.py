"""fastreg._C with the CUDA operators in place of the CPU ones: their kernels run on the CPU, in the host executor.

Slow, and for tests alone: whatever holds for the CPU backend then has to hold for the CUDA kernels' code, too.
"""

import os
import sysconfig
from pathlib import Path

import pybind11
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[3]


def load():
    """Build it, if it is not up to date, and return the module."""
    executor = ROOT / "tests" / "host_executor"
    directory = ROOT / "build" / f"host-executed-{torch.__version__}"
    directory.mkdir(parents=True, exist_ok=True)
    # ninja from a virtual environment that is not activated.
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    sources = [
        *sorted((ROOT / "csrc").glob("*.cpp")),
        *sorted((ROOT / "csrc" / "cuda").glob("*.cpp")),
        *sorted((ROOT / "csrc" / "kernels").glob("*.cpp")),
        *sorted((executor / "src").glob("*.cpp")),
        executor / "extension" / "kernels.cpp",
    ]
    return cpp_extension.load(
        name="_C",
        sources=[str(source) for source in sources],
        extra_include_paths=[str(ROOT / "csrc"), str(ROOT / "tests"), pybind11.get_include()],
        extra_cflags=[
            "-O2",
            "-g1",
            "-Wno-unknown-pragmas",
            "-fno-strict-aliasing",
            "-DFASTREG_HOST_EXECUTOR",
            f'-DFASTREG_TORCH_VERSION=\\"{torch.__version__}\\"',
        ],
        build_directory=str(directory),
    )
