"""The C++ tests on the GPU, a process per file; and some of them under compute-sanitizer."""

from __future__ import annotations

import re

from tests.gpu_check import machine
from tests.gpu_check.builds import kernels_binary
from tests.gpu_check.machine import ROOT
from tests.gpu_check.steps import DONE, FAILED, Command, Outcome, Unit

SECONDS = 60  # a file
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
TOOL_FOUND = 86  # compute-sanitizer's exit status where it reports something
# Parts of names of tests, small ones first: all kernels, few shapes.
SANITIZED = {
    "dropouts": [
        *("dropout kernel: state in memory", "dropout kernel: zeros", "dropout kernel: index maps"),
        *("feature dropout kernel: state in memory", "activation and dropout: activations"),
    ],
    "batch norms": [
        *("batch norm kernels: repeatable", "batch norm merge kernel", "batch norm slabs: repeatable"),
        *("batch norm slabs: constant", "batch norm teams: repeatable"),
    ],
    "fused": ["batch norm and activation: repeatable", "batch norm and activation: what is dropped"],
    "fused teams": ["batch norm and activation by teams: gates"],
    "shapes": ["dropout kernel: sizes", "batch norm kernels: shapes", "batch norm slabs: shapes"],
}
SECONDS_SANITIZED = 90  # a set of them under a tool


def groups():
    """The files' names without their endings, as the program knows them."""
    return sorted(path.stem for path in (ROOT / "tests/cpp").rglob("*_test.cpp"))


def kernels(job):
    return [Unit(group, _group(group), SECONDS) for group in groups()]


def _group(group):
    def steps(job, seconds):
        result = yield Command([kernels_binary(job), "--group", group])
        return outcome(result)

    return steps


def outcome(result):
    """Of what the program printed, as far as it came."""
    lines = re.findall(r"^(ok|FAILED|CUT SHORT) (.+?): \d+ expectations.*?(; .*)?$", result.output, re.MULTILINE)
    words = {"ok": "passed", "FAILED": "failed", "CUT SHORT": "cut short"}
    counts = {word: sum(kind == name for kind, *_ in lines) for name, word in words.items()}
    counts = {word: count for word, count in counts.items() if count}
    failed = [name for kind, name, _ in lines if kind == "FAILED"]
    broken = re.findall(r"^(the device is broken after .+)$", result.output, re.MULTILINE)
    summed = re.search(r"^\d+ tests, \d+ failed, \d+ cut short$", result.output, re.MULTILINE)
    begun = re.findall(r"^running (.+)$", result.output, re.MULTILINE)
    if broken:
        failed += broken
    elif not summed:
        failed.append(f"{begun[-1]}: {result.ended}" if begun else f"{result.ended} before the first test")
    elif not lines:
        failed.append("no such tests")
    elif result.status != 0 and not failed:
        failed.append(result.ended)
    results = {"counts": counts, "failed": failed}
    if cut := [f"{name}{why}" for kind, name, why in lines if kind == "CUT SHORT"]:
        results["cut_short"] = cut
    note = ", ".join(f"{count} {word}" for word, count in counts.items()) or "none"
    return Outcome(FAILED if failed else DONE, "; ".join([note, *failed]), results)


def sanitizers(job):
    program = machine.find_sanitizer()
    if program is None:
        where = "beside nvcc, on PATH or in pip's nvidia packages; it comes with the CUDA toolkit"
        return Outcome(FAILED, f"no compute-sanitizer {where}")
    return [
        Unit(f"{tool}: {name}", _sanitized(program, tool, tests), SECONDS_SANITIZED)
        for name, tests in SANITIZED.items()
        for tool in TOOLS
    ]


def _sanitized(program, tool, tests):
    def steps(job, seconds):
        command = [program, "--tool", tool, "--error-exitcode", TOOL_FOUND, kernels_binary(job), *tests]
        result = yield Command(command, {"FASTREG_ON_DEVICE_BARE": "1"})
        return sanitizer_outcome(tool, result)

    return steps


def sanitizer_outcome(tool, result):
    """Clean only where the tool has summed up, and the program beneath it has run its tests to the end."""
    tests = outcome(result)
    summary = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY: (\d+) .*)$", result.output, re.MULTILINE)
    if not summary:
        said = re.findall(r"^=+ (\S.*)$", result.output, re.MULTILINE)[-1:] or [result.ended]
        why = [f"{tool} gave no summary: {said[0]}", *tests.results["failed"]]
        return Outcome(FAILED, why[0], {"failed": why})
    failed = [line for line, count in summary if count != "0"]
    if result.status not in (0, TOOL_FOUND) or not failed:
        failed += tests.results["failed"]
    results = {"counts": tests.results["counts"], "failed": failed}
    return Outcome(FAILED if failed else DONE, "; ".join([line for line, _ in summary] + [tests.note]), results)
