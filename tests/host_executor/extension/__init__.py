"""fastreg._C with the CUDA operators in place of the CPU ones: their kernels run on the CPU, in the host executor.

Slow, and for tests alone: whatever holds for the CPU backend then has to hold for the CUDA kernels' code, too.
"""

import contextlib
import fcntl
import os
import sysconfig
from pathlib import Path

import pybind11
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[3]


@contextlib.contextmanager
def building(directory):
    """One process at a time. A lock of torch's that is there then was left by a process that was killed, and would be
    waited for forever."""
    with open(directory / "building", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, if by the end of the process
        (directory / "lock").unlink(missing_ok=True)
        yield


def under_its_own_name(source, directory):
    """A file that includes source. torch names an object by its source's name alone, which other folders have, too."""
    file = directory / "_".join(source.relative_to(ROOT / "csrc").parts)
    text = f'#include "{source}"\n'
    if not file.exists() or file.read_text() != text:  # else it would be compiled again
        file.write_text(text)
    return file


def load():
    """Build it, if it is not up to date, and return the module."""
    executor = ROOT / "tests" / "host_executor"
    directory = ROOT / "build" / f"host-executed-{torch.__version__}"
    directory.mkdir(parents=True, exist_ok=True)
    # ninja from a virtual environment that is not activated.
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    patterns = ["*.cpp", *(f"{layer}/**/*.cpp" for layer in ("operators", "autograd", "cuda", "kernels"))]
    operators = sorted(path for pattern in patterns for path in (ROOT / "csrc").glob(pattern))
    with building(directory):
        sources = [
            *(under_its_own_name(source, directory) for source in operators),
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
