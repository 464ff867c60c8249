"""What the phases of tests/gpu_check make of what the tools say, and what it finds out about the machine."""

import json
import shutil
from types import SimpleNamespace

import pytest

from tests.gpu_check import machine, phases
from tests.gpu_check.gpu_check_jobs import CPU, GPU, make_job
from tests.gpu_check.runner import DONE, FAILED, LEFT_OUT, Job, Outcome

PROGRAM = """on Abacus 9000, sm_90
ok dropout: 5 expectations, 0 failed, 0.01 s
CUT SHORT traffic: 1 expectations, 0 failed, 0.01 s; a GPU does not count accesses
"""
PASSED = PROGRAM + "2 tests, 0 failed, 1 cut short\n"
BROKEN = PROGRAM + "FAILED batch norm: 3 expectations, 1 failed, 0.01 s\n3 tests, 1 failed, 1 cut short\n"
CLEAN = "========= ERROR SUMMARY: 0 errors\n"
NO_RACES = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
RACES = "========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)\n"


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, PASSED, DONE),
        (1, BROKEN, FAILED),
        (0, BROKEN, FAILED),
        (-11, PASSED, FAILED),
        (0, PROGRAM, FAILED),
        (0, "0 tests, 0 failed, 0 cut short\n", FAILED),
        (77, "no CUDA device, nothing has been tested\n", FAILED),
    ],
)
def test_kernels_outcome(status, output, expected):
    assert phases.kernels_outcome(status, output).status == expected


def test_kernels_that_failed_or_were_cut_short_are_named():
    names = phases.kernels_outcome(1, BROKEN).results["names"]
    assert names == ["CUT SHORT traffic; a GPU does not count accesses", "FAILED batch norm"]


@pytest.mark.parametrize(
    ("tool", "status", "output", "expected"),
    [
        ("memcheck", 0, PASSED + CLEAN, DONE),
        ("racecheck", 0, PASSED + NO_RACES, DONE),
        ("racecheck", 0, PASSED + RACES, FAILED),
        ("memcheck", 86, PASSED + CLEAN.replace("0", "3"), FAILED),
        ("memcheck", 0, PASSED + CLEAN + CLEAN.replace("0", "3"), FAILED),
        ("memcheck", 0, PASSED, FAILED),
        ("memcheck", 0, CLEAN, FAILED),  # the program has not come to its end
        ("memcheck", 1, BROKEN + CLEAN, FAILED),
        ("memcheck", None, PROGRAM, FAILED),
        ("memcheck", 255, "========= Error: Device not supported.\n", FAILED),
    ],
)
def test_sanitizer_outcome(tool, status, output, expected):
    outcome = phases.sanitizer_outcome(tool, status, output)
    assert outcome.status == expected
    assert (
        "Device not supported" in outcome.note if status == 255 else tool in outcome.note or "SUMMARY" in outcome.note
    )


def test_junit_counts():
    cases = """<testcase classname="t" name="a"/><testcase classname="t" name="b"><failure message="m"/></testcase>
        <testcase classname="t" name="c"><error message="m"/></testcase>
        <testcase classname="t" name="d"><skipped message="why"/></testcase>"""
    assert phases.read_junit(f"<testsuites><testsuite>{cases}</testsuite></testsuites>") == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failures": ["t::b", "t::c"],
        "reasons": ["why"],
    }


def timings(**changes):
    described = {"backend": "cuda", "device": GPU["device"], "fastreg_kernels": True} | changes
    return {"complete": True, "environment": described, "rows": [{}, {}]}


def test_timings_are_of_this_device_with_fastregs_kernels_and_whole():
    assert phases.timings_outcome(0, timings(), GPU).status == DONE
    assert phases.timings_outcome(0, timings(backend="cpu", device="Slide Rule"), GPU).status == FAILED
    assert phases.timings_outcome(0, timings(backend="cpu"), GPU).status == FAILED
    assert phases.timings_outcome(0, timings(), CPU | {"device": GPU["device"]}).status == FAILED
    assert phases.timings_outcome(0, timings(fastreg_kernels=False), GPU).status == FAILED
    assert phases.timings_outcome(0, timings() | {"complete": False}, GPU).status == FAILED
    assert phases.timings_outcome(0, timings() | {"rows": []}, GPU).status == FAILED
    assert phases.timings_outcome(130, timings(), GPU).status == FAILED


def test_timings_of_an_earlier_run_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "missing", lambda names: None)
    job = make_job(tmp_path)
    (job.report.folder / "timings.json").write_text(json.dumps(timings()))
    monkeypatch.setattr(Job, "command", lambda self, *command, **environ: (1, ""))
    assert phases.bench("timings")(job) == Outcome(FAILED, "bench ended with status 1 and wrote nothing")


def test_cpu_timings_only_on_request(tmp_path):
    outcome = phases.bench("timings")(make_job(tmp_path, CPU))
    assert outcome.status == LEFT_OUT and "--cpu-timings" in outcome.note


def test_a_gpu_that_torch_does_not_see_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "driver", lambda: [{"name": "Abacus 9000"}])
    outcome = phases.environment(make_job(tmp_path, CPU))
    assert outcome.status == FAILED and "nvidia-smi lists Abacus 9000" in outcome.note


def test_without_compute_sanitizer_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "find_sanitizer", lambda: None)
    outcome = phases.sanitizer("memcheck")(make_job(tmp_path))
    assert outcome.status == FAILED and "no compute-sanitizer" in outcome.note


def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    assert machine.missing(["pytest", "torch"]) is None
    note = machine.missing(["no-such-1", "pytest", "no-such-2", "no-such-1"])
    assert note.startswith("missing: no-such-1 no-such-2. Remedy: pip install no-such-1 no-such-2;")
    monkeypatch.setattr(machine, "missing", lambda names: note)
    for phase in (
        phases.build_extension,
        phases.build_kernels,
        phases.tests_python,
        phases.codegen,
        phases.bench("timings"),
    ):
        assert phase(make_job(tmp_path)) == Outcome(FAILED, note)


def test_a_gpu_outside_of_the_table_is_left_out(tmp_path):
    outcome = phases.codegen(make_job(tmp_path, GPU | {"capability": "8.9"}))
    assert outcome.status == LEFT_OUT and "89" in outcome.note


# The machine


def test_requirements_are_those_of_pyproject():
    assert {"pytest", "hypothesis"} <= set(machine.requirements("test"))
    assert "matplotlib" in machine.requirements("bench")
    assert {"setuptools", "pybind11", "ninja"} <= set(machine.requirements("requires"))


def test_compute_sanitizer_is_found_in_pips_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "find_toolkit", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda *args, **options: None)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: spec if name == "nvidia" else None)
    assert machine.find_sanitizer() is None
    program = tmp_path / "cu13/bin/compute-sanitizer"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    assert machine.find_sanitizer() == program
    spec.submodule_search_locations = None
    assert machine.find_sanitizer() is None


def test_fingerprint_follows_the_sources_and_not_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "NOT_SOURCES", [tmp_path / "bench/results"])
    for name in ("csrc/a.cu", "bench/results/gpu/timings.csv", "bench/results/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = machine.describe_sources()
    assert before["commit"] is None  # there is no repository
    (tmp_path / "bench/results/x.py").write_text("2")
    assert machine.describe_sources() == before
    (tmp_path / "csrc/a.cu").write_text("2")
    assert machine.describe_sources() != before


def test_slug():
    assert machine.slug("NVIDIA H200") == "nvidia-h200"
    assert machine.slug("cpu Intel(R) Xeon(R) @ 2.5 GHz") == "cpu-intel-r-xeon-r-2-5-ghz"
