"""`make gpu-bundle`: the extension and the C++ tests compiled ahead, where there is nvcc and time, for a machine with a
GPU and little time. `--bundle` of tests.gpu_check takes what fits: the same sources, torch, Python and GPU."""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.gpu_check import machine
from tests.gpu_check.machine import ROOT

FOLDER = ROOT / "build/gpu_bundle"
SOURCES = {  # what is compiled into each
    "build.extension": ["csrc", "setup.py"],
    "build.kernels": ["csrc", "CMakeLists.txt", "tests/cpp", "tests/on_device", "tests/host_executor"],
}
MOST_BYTES = 60 << 20


@functools.cache
def describe(folder):
    """What bundle.json says; {} where there is none."""
    try:
        return json.loads((folder / "bundle.json").read_text())
    except (OSError, ValueError):
        return {}


def misfit(job, name):
    """Why a build cannot be taken from the job's bundle: None where it can, "" where there is none to take."""
    made = describe(job.bundle) if job.bundle and job.on_gpu else {}
    if not made:
        return ""
    found = job.found
    here = {"machine": found.get("machine"), "capability": found["capability"]}
    here |= {"sources": machine.fingerprint(SOURCES[name])}
    part = made[name.removeprefix("build.")]
    if not part:
        return "it is not in the bundle"
    if name == "build.extension":
        here |= {"torch": found["torch"], "suffix": found.get("suffix")}
    if not (job.bundle / part["file"]).exists():
        return f"the bundle lacks {part['file']}"
    different = [f"{key} {part.get(key)} and {value}" for key, value in here.items() if part.get(key) != value]
    return f"the bundle does not fit: {', '.join(different)}" if different else None


def _common(capability, name, path):
    return {
        "file": path.name,
        "machine": platform.machine(),
        "capability": capability,
        "sources": machine.fingerprint(SOURCES[name]),
    }


def make_kernels(folder, capability, cores):
    """Returns (part of bundle.json or None, why not)."""
    from tests.gpu_check.builds import configure_and_build

    nvcc = machine.find_nvcc()
    if nvcc is None:
        return None, "there is no nvcc"
    work = ROOT / "build/gpu_bundle_cmake"
    for command in configure_and_build(work, nvcc, capability.replace(".", ""), cores):
        if not _run(command):
            return None, "cmake failed"
    path = folder / "kernels_on_device"
    shutil.copy2(work / path.name, path)
    _run(["strip", path])
    return _common(capability, "build.kernels", path), ""


def make_extension(folder, capability, cores):
    """For the Python that runs this. Returns (part of bundle.json or None, why not)."""
    try:
        import torch
    except ImportError:
        return None, f"{sys.executable} has no torch"
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    if torch.version.cuda is None:
        return None, f"it is of {python}, which is no CUDA build"
    library = ROOT / "build/gpu_bundle_lib"
    shutil.rmtree(library, ignore_errors=True)
    environ = {"TORCH_CUDA_ARCH_LIST": capability, "FASTREG_CUDA": "1", "FASTREG_REQUIRE_EXT": "1"}
    build = [sys.executable, "setup.py", "build_ext", "--force", "--build-lib", library]
    if not _run(build, MAX_JOBS=str(cores), **environ):
        return None, f"setup.py failed with {python}"
    (built,) = library.rglob("_C*.so")
    path = folder / built.name
    shutil.copy2(built, path)
    part = _common(capability, "build.extension", path)
    return part | {"torch": torch.__version__, "suffix": sysconfig.get_config_var("EXT_SUFFIX")}, ""


def _run(command, **environ):
    return subprocess.run(list(map(str, command)), cwd=ROOT, env=machine.child_environ(**environ)).returncode == 0


def main(argv=None):
    """Returns the exit status: 0 also where the extension is left out, which is said."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check.bundle", description=__doc__)
    parser.add_argument("--capability", default="9.0", help="of the GPU (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="default: build/gpu_bundle")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="default: all cores")
    args = parser.parse_args(argv)
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    made = {}
    for name, make in (("kernels", make_kernels), ("extension", make_extension)):
        made[name], why = make(args.out, args.capability, args.jobs)
        if why:
            print(f"gpu-bundle: without {name}: {why}", file=sys.stderr)
    (args.out / "bundle.json").write_text(json.dumps(made, indent=1) + "\n")
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(
        f"{os.path.relpath(args.out)}: {', '.join(name for name in made if made[name]) or 'nothing'}, {size >> 20} MiB"
    )
    if size > MOST_BYTES:
        print(f"gpu-bundle: must have at most {MOST_BYTES >> 20} MiB", file=sys.stderr)
    return 1 if size > MOST_BYTES or not made["kernels"] else 0


if __name__ == "__main__":
    sys.exit(main())
