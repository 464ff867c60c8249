"""The phases themselves, in the order in which they run."""

from __future__ import annotations

import json
import re
import sys
from xml.etree import ElementTree

from tests.gpu_check import machine
from tests.gpu_check.machine import ROOT
from tests.gpu_check.runner import DONE, FAILED, LEFT_OUT, Outcome, Phase

SANITIZERS = ["memcheck", "racecheck", "synccheck", "initcheck"]
SANITIZER_FOUND = 86  # compute-sanitizer's exit status where it reports something
MOST_NAMES = 50


def environment(job):
    toolkit, sanitizer, gpus = machine.find_toolkit(), machine.find_sanitizer(), machine.driver()
    results = {
        **job.found,
        **job.sources,
        "driver": gpus,
        "nvcc": machine.ask(toolkit / "bin/nvcc", "--version")[1].splitlines()[-2:] if toolkit else None,
        "compute_sanitizer": machine.ask(sanitizer, "--version")[1].splitlines()[-1:] if sanitizer else None,
    }
    if gpus and job.found["backend"] != "cuda":
        found = f"torch {job.found['torch']} (CUDA {job.found['cuda']})"
        return Outcome(FAILED, f"nvidia-smi lists {gpus[0]['name']}, which {found} does not see", results)
    if job.found["backend"] != "cuda":
        return Outcome(DONE, f"no GPU: {job.found['device']}, torch {job.found['torch']}", results)
    return Outcome(DONE, f"{job.found['device']}, torch {job.found['torch']}, CUDA {job.found['cuda']}", results)


def build_extension(job):
    if missing := machine.missing(machine.requirements("requires")):
        return Outcome(FAILED, missing)
    gpu = job.found["backend"] == "cuda"
    environ = {"FASTREG_CUDA": "1" if gpu else "0", "FASTREG_REQUIRE_EXT": "1", "FASTREG_EXPECT": job.found["backend"]}
    if gpu:
        environ["TORCH_CUDA_ARCH_LIST"] = job.found["capability"]
    # egg_info: the version that the benchmarks name. --force: it is for ninja to see what has changed.
    for arguments in (["egg_info"], ["build_ext", "--inplace", "--force"]):
        status, _ = job.command(sys.executable, "setup.py", *arguments, **environ)
        if status != 0:
            return Outcome(FAILED, f"setup.py {arguments[0]} {ended(status)}")
    code = "import fastreg, json; print(json.dumps(fastreg.build_info()))"
    status, output = job.command(sys.executable, "-c", code, **environ)
    if status != 0:
        return Outcome(FAILED, f"the extension does not load: {output.strip().splitlines()[-1:]}")
    info = json.loads(output.splitlines()[-1])
    return Outcome(DONE, f"backends {', '.join(info['backends'])}", info)


def kernels_binary(job):
    return job.work / "cmake/kernels_on_device"


def build_kernels(job):
    if missing := machine.missing(["setuptools", "cmake", "ninja"]):  # setuptools: of setup.py, which finds nvcc
        return Outcome(FAILED, missing)
    toolkit = machine.find_toolkit()
    if toolkit is None:
        return Outcome(FAILED, "no nvcc: put it on PATH or set CUDA_HOME")
    folder = kernels_binary(job).parent
    settings = {
        "FASTREG_CUDA": "ON",
        "FASTREG_FLAVOURS": "",
        "CMAKE_CUDA_COMPILER": toolkit / "bin/nvcc",
        "CMAKE_CUDA_ARCHITECTURES": job.found["capability"].replace(".", ""),
    }
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *(f"-D{k}={v}" for k, v in settings.items())]
    for command in (configure, ["cmake", "--build", folder, "--target", "kernels_on_device"]):
        status, _ = job.command(*command)
        if status != 0:
            return Outcome(FAILED, f"cmake {ended(status)}")
    return Outcome(DONE, f"sm_{settings['CMAKE_CUDA_ARCHITECTURES']}")


def ended(status):
    return "ran past the limit" if status is None else f"ended with status {status}"


def tests_python(job):
    if missing := machine.missing([*machine.requirements("test"), *machine.requirements("bench")]):  # tests of both
        return Outcome(FAILED, missing)
    junit = job.work / "pytest.xml"
    junit.unlink(missing_ok=True)
    arguments = ["-m", "cuda", f"--junitxml={junit}", "-p", "no:cacheprovider"]
    status, _ = job.command(sys.executable, "-m", "pytest", *arguments, FASTREG_EXPECT="cuda")
    results = read_junit(junit.read_text()) if junit.exists() else {}
    counts = ", ".join(f"{results[name]} {name}" for name in ("passed", "failed", "skipped") if name in results)
    if status != 0 or not results.get("passed"):
        return Outcome(FAILED, f"pytest {ended(status)}; {counts or 'no counts'}", results)
    return Outcome(DONE, counts, results)


def read_junit(text):
    """Counts, the names of the tests that failed, and the reasons of those that were skipped."""
    cases = list(ElementTree.fromstring(text).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case.find("skipped") for case in cases if case.find("skipped") is not None]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": len(failed),
        "skipped": len(skipped),
        "failures": [f"{case.get('classname')}::{case.get('name')}" for case in failed][:MOST_NAMES],
        "reasons": sorted({skip.get("message", "") for skip in skipped})[:MOST_NAMES],
    }


def tests_kernels(job):
    status, output = job.command(kernels_binary(job))
    return kernels_outcome(status, output)


def kernels_outcome(status, output):
    """Of kernels_on_device's last line and status."""
    match = re.search(r"^(\d+) tests, (\d+) failed, (\d+) cut short$", output, re.MULTILINE)
    if match is None:
        return Outcome(FAILED, f"kernels_on_device {ended(status)} before its summary")
    tests, failed, cut_short = map(int, match.groups())
    lines = re.findall(r"^((?:FAILED|CUT SHORT) .+?): \d+ expectations.*?(; .*)?$", output, re.MULTILINE)
    results = {"tests": tests, "failed": failed, "cut_short": cut_short, "names": ["".join(line) for line in lines]}
    passed = status == 0 and tests > 0 and failed == 0
    return Outcome(DONE if passed else FAILED, match[0] + ("" if status == 0 else f", {ended(status)}"), results)


def sanitizer(tool):
    def run(job):
        program = machine.find_sanitizer()
        if program is None:
            where = "beside nvcc, on PATH or in pip's nvidia packages; it comes with the CUDA toolkit"
            return Outcome(FAILED, f"no compute-sanitizer {where}")
        command = [program, "--tool", tool, "--error-exitcode", SANITIZER_FOUND, kernels_binary(job)]
        status, output = job.command(*command, FASTREG_ON_DEVICE_BARE="1")
        return sanitizer_outcome(tool, status, output)

    return run


def sanitizer_outcome(tool, status, output):
    """Clean only where the tool has summed up, and the program beneath it has run its tests to the end."""
    tests = kernels_outcome(0, output)
    reports = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+) .*$", output, re.MULTILINE)
    summary = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY: .*)$", output, re.MULTILINE)
    if not summary:
        said = re.findall(r"^=+ (\S.*)$", output, re.MULTILINE)[-1:] or [ended(status)]
        return Outcome(FAILED, f"{tool} gave no summary: {said[0]}", {"tests": tests.results})
    clean = status == 0 and tests.status == DONE and set(map(int, reports)) == {0}
    note = f"{'; '.join(summary)}; {tests.note}" + ("" if status == 0 else f"; {ended(status)}")
    return Outcome(DONE if clean else FAILED, note, {"summary": summary, "tests": tests.results})


def codegen(job):
    if not (ROOT / "tests/codegen/__main__.py").exists():
        return Outcome(LEFT_OUT, "tests/codegen is not there")
    gpu = int(job.found["capability"].replace(".", ""))
    listed = re.search(r"^GPUS = \((.+)\)$", (ROOT / "setup.py").read_text(), re.MULTILINE)[1]
    if gpu not in map(int, listed.split(",")):
        return Outcome(LEFT_OUT, f"its table has {listed}, and this is {gpu}")
    if missing := machine.missing(["setuptools"]):
        return Outcome(FAILED, missing)
    status, output = job.command(sys.executable, "-m", "tests.codegen", "check", "--arch", gpu)
    last = (output.strip().splitlines() or [""])[-1]
    failures = re.findall(r"^FAILED (.+)$", output, re.MULTILINE)
    return Outcome(DONE if status == 0 else FAILED, last, {"failures": failures[:MOST_NAMES]})


def bench(part):
    """The phase that runs a part of `python -m bench`."""

    def run(job):
        backend = job.found["backend"]
        if backend == "cpu" and not job.cpu_timings:
            return Outcome(LEFT_OUT, "needs a GPU; --cpu-timings times the CPU backend")
        if missing := machine.missing(machine.requirements("bench")):
            return Outcome(FAILED, missing)
        folder = job.report.folder
        before = _written(folder, part)
        arguments = ["--only", part, "--device", backend, "--out", folder]
        status, _ = job.command(sys.executable, "-m", "bench", *arguments, FASTREG_EXPECT=backend)
        new = [path for path, when in _written(folder, part).items() if when != before.get(path)]
        if not new:
            return Outcome(FAILED, f"bench {ended(status)} and wrote nothing")
        return timings_outcome(status, json.loads(new[0].read_text()), job.found)

    return run


def _written(folder, part):
    """When each of the part's files was last written."""
    paths = [folder / f"{part}.json", folder / f"{part}.partial.json"]
    return {path: path.stat().st_mtime_ns for path in paths if path.exists()}


def timings_outcome(status, document, found):
    """Of what the benchmarks wrote: on this device, with fastreg's own kernels, and whole."""
    described, rows = document["environment"], len(document["rows"])
    results = {"rows": rows, "complete": document["complete"], "device": described["device"]}
    where = (described["backend"], described["device"])
    if where != (found["backend"], found["device"]):
        return Outcome(FAILED, f"the timings are of {where}, not of {found['device']}", results)
    if not described["fastreg_kernels"]:
        return Outcome(FAILED, "the timings are without fastreg's kernels", results)
    if status != 0 or not document["complete"] or rows == 0:
        return Outcome(FAILED, f"bench {ended(status)}; {rows} rows are kept", results)
    return Outcome(DONE, f"{rows} rows of {described['device']}", results)


def _extension(job):
    return sorted((ROOT / "fastreg").glob("_C*.so")) or [ROOT / "fastreg/_C.so"]


def _results(part):
    return lambda job: [job.report.folder / f"{part}.json"]


PHASES = [
    Phase("environment", environment, needs_gpu=False),
    Phase("build.extension", build_extension, products=_extension, needs_gpu=False),
    Phase("build.kernels", build_kernels, products=lambda job: [kernels_binary(job)]),
    Phase("tests.python", tests_python, needs=["build.extension"]),
    Phase("tests.kernels", tests_kernels, needs=["build.kernels"]),
    *(Phase(f"sanitizer.{tool}", sanitizer(tool), needs=["build.kernels"]) for tool in SANITIZERS),
    Phase("codegen", codegen),
    *(
        Phase(f"bench.{part}", bench(part), needs=["build.extension"], products=_results(part), needs_gpu=False)
        for part in ("timings", "end-to-end")
    ),
]
