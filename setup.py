"""Builds fastreg._C: the CPU backend, and the CUDA backend where nvcc and a CUDA build of torch are there.

No GPU is needed to build. The environment decides the rest:

    FASTREG_CUDA          1: the CUDA backend or an error; 0: without it; unset: as the machine allows
    FASTREG_REQUIRE_EXT   1: a missing compiler is an error, instead of a pure-Python install
    TORCH_CUDA_ARCH_LIST  the GPUs to compile for, as in torch; unset: those present, else sm_75 to sm_120
    MAX_JOBS, DEBUG, CUDA_HOME, CXX, NVCC_APPEND_FLAGS   as usual

The functions up to build() map plain values to decisions, so that tests/test_build.py can call them.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
INSTALL = "pip install --no-build-isolation"
BUILD_REQUIRES = "setuptools wheel pybind11 ninja"

# Machine code for each of these GPUs, assembled from few virtual targets: the front end, most of nvcc's time, runs
# once per virtual target. The newest virtual target is kept as PTX for GPUs still to come.
GPUS = (75, 80, 86, 90, 100, 120)
VIRTUAL_TARGETS = (75, 80, 90)


def fail(message):
    raise SystemExit(f"fastreg: {message}")


def find_toolkit(environ):
    """The CUDA toolkit's folder, or None. nvcc on PATH may be a wrapper outside of it: nvcc itself knows better."""
    if named := environ.get("CUDA_HOME") or environ.get("CUDA_PATH"):
        candidates = [named]
    elif nvcc := shutil.which("nvcc", path=environ.get("PATH")):
        dryrun = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, env=environ)
        candidates = re.findall(r"^#\$ TOP=(.+)$", dryrun.stderr, re.MULTILINE) + [Path(nvcc).resolve().parents[1]]
    else:
        candidates = ["/usr/local/cuda"]
    return next((Path(c).resolve() for c in candidates if (Path(c) / "bin/nvcc").exists()), None)


def nvcc_release(toolkit):
    """The toolkit's version, such as "13.0"; None without a toolkit."""
    if toolkit is None:
        return None
    text = subprocess.run([toolkit / "bin/nvcc", "--version"], capture_output=True, text=True).stdout
    return match[1] if (match := re.search(r"release (\d+\.\d+)", text)) else fail(f"{toolkit}/bin/nvcc does not run")


def use_cuda(request, torch_cuda, release):
    """Whether to build the CUDA backend, and why not where that may surprise.

    request: FASTREG_CUDA; torch_cuda: torch.version.cuda; release: nvcc's version, None if there is no nvcc.
    """
    if request not in (None, "", "0", "1"):
        fail(f"FASTREG_CUDA must be 0 or 1, got {request!r}")
    if request == "0":
        return False, "CPU backend only (FASTREG_CUDA=0)"
    if torch_cuda is None:
        note = "this torch is not a CUDA build"
    elif release is None:
        note = (
            f"nvcc, of the CUDA {torch_cuda} that torch is built for, was not found: put it on PATH, or set CUDA_HOME "
            "to the toolkit's folder"
        )
    elif release.split(".")[0] != torch_cuda.split(".")[0]:
        major = torch_cuda.split(".")[0]
        fail(
            f"nvcc is of CUDA {release}, but torch is built for CUDA {torch_cuda}. Set CUDA_HOME to a CUDA {major} "
            f"toolkit, or install a torch built for CUDA {release.split('.')[0]} (https://pytorch.org), or set "
            "FASTREG_CUDA=0 to build the CPU backend alone."
        )
    else:
        return True, f"CPU and CUDA backends (CUDA {release})"
    if request == "1":
        fail(f"FASTREG_CUDA=1, but {note}")
    return False, f"CPU backend only: {note}"


def choose_gpus(present, supported):
    """The GPUs to compile for: those present if nvcc supports them all, else every one of GPUS that it supports.

    present and supported hold compute capabilities as numbers, such as 90.
    """
    return sorted(set(present)) if present and set(present) <= supported else [g for g in GPUS if g in supported]


def gencode_flags(gpus):
    """nvcc's flags for the given GPUs: each assembled from the newest virtual target that it runs."""
    if too_old := [gpu for gpu in gpus if gpu < VIRTUAL_TARGETS[0]]:
        fail(f"GPUs from sm_{VIRTUAL_TARGETS[0]} on are supported, got sm_{too_old[0]}; FASTREG_CUDA=0 builds without")
    codes = {}
    for gpu in gpus:
        codes.setdefault(max(v for v in VIRTUAL_TARGETS if v <= gpu), []).append(f"sm_{gpu}")
    codes[max(codes)].append(f"compute_{max(codes)}")
    return [f"-gencode=arch=compute_{virtual},code=[{','.join(code)}]" for virtual, code in codes.items()]


def missing_compiler(environ):
    """What is missing for compiling an extension module, or None."""
    cxx = shlex.split(environ.get("CXX", "c++"))[0]
    if shutil.which(cxx, path=environ.get("PATH")) is None:
        return f"no C++ compiler ({cxx}): install one, on Debian and Ubuntu by apt install g++"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return None if header.exists() else f"no {header}: install it, on Debian and Ubuntu by apt install python3-dev"


def cuda_flags(toolkit, environ):
    """(nvcc's flags for architectures, their description for build_info)."""
    import torch

    if named := environ.get("TORCH_CUDA_ARCH_LIST"):
        return [], named  # torch's own reading of it: named families, +PTX, native
    listed = subprocess.run([toolkit / "bin/nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True)
    supported = {int(code) for code in re.findall(r"^sm_(\d+)$", listed.stdout, re.MULTILINE)}
    capabilities = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    gpus = choose_gpus([10 * major + minor for major, minor in capabilities], supported)
    return gencode_flags(gpus), " ".join(f"{gpu // 10}.{gpu % 10}" for gpu in gpus) + "+PTX"


def describe_extension(torch, cpp_extension, pybind11, toolkit, environ):
    """The extension module; with the CUDA backend where toolkit is not None."""
    debug = environ.get("DEBUG", "0") not in ("", "0")
    patterns = ["csrc/*.cpp", *(f"csrc/{layer}/**/*.cpp" for layer in ("operators", "autograd", "cpu", "kernels"))]
    macros = [("FASTREG_TORCH_VERSION", f'"{torch.__version__}"')]
    libraries = ["c10", "torch", "torch_cpu"]
    nvcc = []
    if toolkit:
        patterns += ["csrc/cuda/**/*.cpp", "csrc/kernels/**/*.cu"]
        libraries += ["c10_cuda", "torch_cuda", "cudart"]
        gencode, gpus = cuda_flags(toolkit, environ)
        macros += [("FASTREG_WITH_CUDA", None), ("FASTREG_CUDA_ARCHITECTURES", f'"{gpus}"')]
        nvcc = ["-G", "-g"] if debug else ["-O3", "-lineinfo"]
        nvcc += ["--threads=2", "-Xfatbin=-compress-all", *gencode]
    # The headers of torch are system headers to the C++ compiler, so that our warnings stay readable, and unknown to
    # nvcc, so that no kernel can come to depend on them.
    device = "cuda" if toolkit else "cpu"
    headers = [pybind11.get_include(), *cpp_extension.include_paths(device)]
    cxx = ["-O0", "-g"] if debug else ["-O3", "-g0"]
    # -fopenmp to compile, not to link: ATen's parallel loops are compiled into ours, and have to find the threads of
    # torch's own OpenMP runtime, not bring a second one.
    cxx += ["-Wall", "-Wextra", "-fopenmp", "-fno-math-errno", "-fvisibility=hidden"]
    return Extension(
        "fastreg._C",
        sources=sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=macros,
        extra_compile_args={"cxx": cxx + [f"-isystem{path}" for path in headers], "nvcc": nvcc},
        library_dirs=cpp_extension.library_paths(device),
        libraries=libraries,
        language="c++",
    )


def build():
    """setup()'s arguments for the extension module."""
    # ninja from a virtual environment that is not activated; without ninja each build starts from nothing.
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    os.environ.setdefault("CXX", "c++")  # to compile and to link, whatever compiler Python itself was built with
    os.environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))
    toolkit = find_toolkit(os.environ)
    if toolkit:
        os.environ["CUDA_HOME"] = str(toolkit)  # before cpp_extension, which reads it on import
    try:
        import pybind11
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        fail(
            f"{error}. fastreg is compiled against the torch that is installed, which pip's build isolation hides. "
            f"Install torch, then:  pip install {BUILD_REQUIRES}  and  {INSTALL} .  (docs/building.md)"
        )
    if missing := missing_compiler(os.environ):
        if os.environ.get("FASTREG_REQUIRE_EXT") == "1" or os.environ.get("FASTREG_CUDA") == "1":
            fail(f"the extension cannot be built: {missing}")
        print(f"fastreg: pure Python only, which is slow: {missing}", file=sys.stderr)
        return {}
    with_cuda, note = use_cuda(os.environ.get("FASTREG_CUDA"), torch.version.cuda, nvcc_release(toolkit))
    print(f"fastreg: {note}", file=sys.stderr)

    class BuildExtension(cpp_extension.BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            # Kept between builds, editable ones too, and apart from objects compiled against another torch.
            kind = f"torch-{torch.__version__}-{sys.implementation.cache_tag}-{'cuda' if with_cuda else 'cpu'}"
            self.build_temp = str(ROOT / "build" / kind)

    extension = describe_extension(torch, cpp_extension, pybind11, toolkit if with_cuda else None, os.environ)
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


if __name__ == "__main__":
    metadata_only = not {"egg_info", "dist_info", "sdist", "clean"}.isdisjoint(sys.argv)
    setup(**({} if metadata_only else build()))
