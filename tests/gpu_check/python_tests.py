"""The Python tests that are marked `cuda`, a process per file, several at a time."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

from tests.gpu_check import machine
from tests.gpu_check.machine import ROOT
from tests.gpu_check.steps import DONE, FAILED, LEFT_OUT, Command, Outcome, Unit

SECONDS = 100  # a file
SECONDS_TO_TRACE = 40  # of a test, after which its threads' tracebacks are logged
NO_TESTS = 5  # pytest's exit status
# What tells most comes first; the other files follow by name.
FIRST = [
    *("functional/test_dropout", "functional/test_batch_norm", "cuda/test_cuda", "functional/test_fused"),
    *("cuda/test_batch_norm_tiers", "cuda/test_fused_tiers", "functional/test_batch_norm_numerics"),
    *("functional/test_torch_reports", "functional/test_rng_states", "transforms/test_compile"),
]
MENTIONED = re.compile(r"\bmark\.cuda\b|\bDEVICES\b")


def files():
    """Those whose text speaks of a GPU, but for this folder's, which plant it."""
    paths = [path for path in (ROOT / "tests").rglob("test_*.py") if path.parent != Path(__file__).parent]
    order = {name: index for index, name in enumerate(FIRST)}
    found = [path for path in paths if MENTIONED.search(path.read_text())]
    return sorted(found, key=lambda path: (order.get(_name(path), len(order)), path))


def _name(path):
    """cuda/test_cuda"""
    return str(path.relative_to(ROOT / "tests").with_suffix(""))


def workers(job):
    """At a time: a process takes about one core, and some of the GPU's memory."""
    return max(1, min(12, job.cores - 2))


def units(job):
    if missing := machine.missing(["pytest", "hypothesis"]):
        return Outcome(FAILED, missing)
    return [Unit(f"{_name(path)}.py", _file(path), SECONDS) for path in files()]


def _file(path):
    def steps(job, seconds):
        journal = job.work / "journals" / f"{_name(path).replace('/', '.')}.jsonl"
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.unlink(missing_ok=True)
        command = [sys.executable, "-X", "faulthandler", "-m", "pytest", path.relative_to(ROOT), "-m", "cuda", "-v"]
        command += ["--tb=short", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={SECONDS_TO_TRACE}"]
        command += ["-p", "tests.gpu_check.journal", "--journal", journal]
        # Many processes share the cores.
        environ = {"FASTREG_EXPECT": "cuda", "PYTHONUNBUFFERED": "1"}
        environ |= {"OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "2"}
        result = yield Command(command, environ)
        return outcome(result, journal.read_text() if journal.exists() else "")

    return steps


def outcome(result, journal):
    """Of a file's process, by its journal: also of one that died, or was stopped."""
    lines = [json.loads(line) for line in journal.splitlines() if line.endswith("}")]
    ended = {line["end"]: line["outcome"] for line in lines if "end" in line}  # of teardown, if that fails
    begun = [line["begin"] for line in lines if "begin" in line and line["begin"] not in ended]
    collected = sum(line.get("collected", 0) for line in lines)
    if result.status == NO_TESTS and not collected:
        return Outcome(LEFT_OUT, "no test of a GPU")
    counts = dict(Counter(ended.values()))
    failed = [name for name, kind in ended.items() if kind == "failed"]
    if broken := re.findall(r"the device is broken after (.+?) !*$", result.output, re.MULTILINE):
        failed = [name for name in failed if name not in broken[-1]] + [f"the device is broken after {broken[-1]}"]
    if result.status not in (0, 1):
        where = f" in {begun[-1]}" if begun else "" if ended else " before the first test"
        failed.append(f"{result.ended}{where}")
    elif result.status == 1 and not failed:
        failed.append(_said(result.output))
    if missed := collected - len(ended) - len(begun):
        counts["not run"] = missed
    failed = [name.split("::", 1)[-1] if name in ended else name for name in failed]
    note = ", ".join(f"{count} {word}" for word, count in counts.items()) or "no tests"
    results = {"counts": counts, "failed": failed}
    return Outcome(
        FAILED if failed else DONE, "; ".join([note, *failed[:3], *(["..."] if failed[3:] else [])]), results
    )


def _said(output):
    """pytest's last complaint, such as of an import."""
    said = re.findall(r"^E +(.+)$", output, re.MULTILINE) or output.strip().splitlines() or ["pytest failed"]
    return said[-1][:200]
