"""The builds: the extension and the C++ tests, for one GPU, or what was compiled on another machine."""

from __future__ import annotations

import json
import shutil
import sys

from tests.gpu_check import bundle, machine
from tests.gpu_check.machine import ROOT
from tests.gpu_check.steps import DONE, FAILED, Command, Outcome, single

SECONDS = 210  # a build, at most
CPU_SECONDS = 430 + 190  # of both builds, for one GPU, as measured once
SLOWEST_FILE = 60  # seconds that no number of cores shortens


def estimate(name):
    """Seconds on so many cores, which both builds share."""

    def seconds(job):
        if bundle.misfit(job, name) is None:
            return 5
        return SLOWEST_FILE + CPU_SECONDS / job.cores

    return seconds


def extension(job):
    return single("build.extension", _build_extension, SECONDS)


def _build_extension(job, seconds):
    why = bundle.misfit(job, "build.extension")
    if why is None:
        shutil.copy2(job.bundle / bundle.describe(job.bundle)["extension"]["file"], ROOT / "fastreg")
        outcome = yield from _load(job, "from the bundle")
        if outcome.status == DONE:
            return outcome
        why = outcome.note
    if missing := machine.missing(machine.requirements("requires")):
        return Outcome(FAILED, missing)
    environ = _environ(job) | {"FASTREG_CUDA": "1" if job.on_gpu else "0", "FASTREG_REQUIRE_EXT": "1"}
    environ |= {"MAX_JOBS": str(job.cores)}
    if job.on_gpu:
        environ["TORCH_CUDA_ARCH_LIST"] = job.found["capability"]
    # --force: it is for ninja to see what has changed.
    result = yield Command([sys.executable, "setup.py", "build_ext", "--inplace", "--force"], environ)
    if result.status != 0:
        return Outcome(FAILED, f"setup.py build_ext {result.ended}{first_error(result.output)}")
    return (yield from _load(job, f"built here ({why})" if why else "built here"))


def _environ(job):
    return {"FASTREG_EXPECT": job.found["backend"]}


def _load(job, how):
    code = "import fastreg, json; print(json.dumps(fastreg.build_info()))"
    result = yield Command([sys.executable, "-c", code], _environ(job))
    if result.status != 0:
        return Outcome(FAILED, f"the extension does not load: {''.join(result.output.strip().splitlines()[-1:])}")
    info = json.loads(result.output.splitlines()[-1])
    return Outcome(DONE, f"backends {', '.join(info['backends'])}; {how}", info)


def extension_files(job):
    return sorted((ROOT / "fastreg").glob("_C*.so")) or [ROOT / "fastreg/_C.so"]


def kernels_binary(job):
    return job.work / "cmake/kernels_on_device"


def kernels(job):
    return single("build.kernels", _build_kernels, SECONDS)


def _build_kernels(job, seconds):
    why = bundle.misfit(job, "build.kernels")
    if why is None:
        kernels_binary(job).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(job.bundle / kernels_binary(job).name, kernels_binary(job))
        return Outcome(DONE, "from the bundle")
    if missing := machine.missing(["setuptools", "cmake", "ninja"]):  # setuptools: of setup.py, which finds nvcc
        return Outcome(FAILED, missing)
    nvcc = machine.find_nvcc()
    if nvcc is None:
        return Outcome(FAILED, "no nvcc: put it on PATH or set CUDA_HOME")
    architecture = job.found["capability"].replace(".", "")
    for arguments in configure_and_build(kernels_binary(job).parent, nvcc, architecture, job.cores):
        result = yield Command(arguments)
        if result.status != 0:
            return Outcome(FAILED, f"cmake {result.ended}{first_error(result.output)}")
    return Outcome(DONE, f"sm_{architecture}; built here" + (f" ({why})" if why else ""))


def configure_and_build(folder, nvcc, architecture, cores):
    """The commands that make the C++ tests for one GPU."""
    settings = {
        "FASTREG_CUDA": "ON",
        "FASTREG_FLAVOURS": "",
        "CMAKE_CUDA_COMPILER": nvcc,
        "CMAKE_CUDA_ARCHITECTURES": architecture,
    }
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *(f"-D{k}={v}" for k, v in settings.items())]
    return configure, ["cmake", "--build", folder, "--target", "kernels_on_device", "-j", cores]


def first_error(output):
    """What a compiler complained of first, as an ending to a sentence."""
    said = [line.strip() for line in output.splitlines() if "error" in line.lower() or "No space left" in line]
    return f": {said[0][:200]}" if said else ""
