"""What the phases of tests/gpu_check make of what the tools say, the plan, and what it finds out about the machine."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.gpu_check import benchmarks, builds, bundle, cpp_tests, machine, plan, python_tests
from tests.gpu_check.gpu_check_jobs import CPU, GPU, make_job
from tests.gpu_check.report import MOST_FILES
from tests.gpu_check.steps import DONE, FAILED, LEFT_OUT, Outcome, Result

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """on Abacus 9000, sm_90
running dropout
ok dropout: 5 expectations, 0 failed, 0.01 s
running traffic
CUT SHORT traffic: 1 expectations, 0 failed, 0.01 s; a GPU does not count accesses
"""
PASSED = PROGRAM + "2 tests, 0 failed, 1 cut short\n"
WRONG = PROGRAM + "running batch norm\nFAILED batch norm: 3 expectations, 1 failed, 0.01 s\n"
BROKEN = WRONG + "the device is broken after batch norm: an illegal memory access\n3 tests, 1 failed, 1 cut short\n"
HANGING = PROGRAM + "running batch norm\n"
CLEAN = "========= ERROR SUMMARY: 0 errors\n"
NO_RACES = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
RACES = "========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)\n"


def result(status, output):
    return Result(status, output, "ran past the limit of 60 s")


@pytest.mark.parametrize(
    ("status", "output", "failed"),
    [
        (0, PASSED, []),
        (1, WRONG + "3 tests, 1 failed, 1 cut short\n", ["batch norm"]),
        (1, BROKEN, ["batch norm", "the device is broken after batch norm: an illegal memory access"]),
        (None, HANGING, ["batch norm: ran past the limit of 60 s"]),
        (-11, HANGING, ["batch norm: ended with signal 11"]),
        (-11, PASSED, ["ended with signal 11"]),
        (0, "0 tests, 0 failed, 0 cut short\n", ["no such tests"]),
        (77, "no CUDA device, nothing has been tested\n", ["ended with status 77 before the first test"]),
    ],
)
def test_cpp_outcome(status, output, failed):
    outcome = cpp_tests.outcome(result(status, output))
    assert outcome.results["failed"] == failed
    assert outcome.status == (FAILED if failed else DONE)


def test_what_was_cut_short_is_named():
    outcome = cpp_tests.outcome(result(0, PASSED))
    assert outcome.results["cut_short"] == ["traffic; a GPU does not count accesses"]
    assert outcome.results["counts"] == {"passed": 1, "cut short": 1}


@pytest.mark.parametrize(
    ("tool", "status", "output", "failed"),
    [
        ("memcheck", 0, PASSED + CLEAN, []),
        ("racecheck", 0, PASSED + NO_RACES, []),
        ("racecheck", 0, PASSED + RACES, ["RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)"]),
        ("memcheck", 86, PASSED + CLEAN.replace("0", "3"), ["ERROR SUMMARY: 3 errors"]),
        ("memcheck", 0, PASSED + CLEAN + CLEAN.replace("0", "3"), ["ERROR SUMMARY: 3 errors"]),
        ("memcheck", 0, CLEAN, ["ended with status 0 before the first test"]),
        ("memcheck", 1, WRONG + "3 tests, 1 failed, 1 cut short\n" + CLEAN, ["batch norm"]),
        ("memcheck", None, HANGING, ["memcheck gave no summary", "batch norm: ran past the limit of 60 s"]),
        ("memcheck", 255, "========= Error: Device not supported.\n", ["memcheck gave no summary: Error: Device", ""]),
    ],
)
def test_sanitizer_outcome(tool, status, output, failed):
    outcome = cpp_tests.sanitizer_outcome(tool, result(status, output))
    assert outcome.status == (FAILED if failed else DONE)
    lines = outcome.results["failed"]
    assert len(lines) == len(failed) and all(map(str.startswith, lines, failed)), lines


def test_sanitized_tests_are_there():
    names = re.findall(
        r'testing::Test \w+\("([^"]+)"', "".join(p.read_text() for p in (ROOT / "tests/cpp").rglob("*.cpp"))
    )
    for part in (part for parts in cpp_tests.SANITIZED.values() for part in parts):
        assert any(part in name for name in names), part
    assert {"dropout_test", "batch_norm_slab_test"} <= set(cpp_tests.groups())


def journal(collected, *tests):
    """As the plugin writes it; None: a test that has not ended."""
    lines = [{"collected": collected}]
    for name, outcome in tests:
        lines += [{"begin": name}] + ([{"end": name, "outcome": outcome}] if outcome else [])
    return "\n".join(map(json.dumps, lines))


SOME = [("f.py::a", "passed"), ("f.py::b", "skipped")]
BREAKS = "!!!!! the device is broken after f.py::c: CUDA error: misaligned address !!!!!\n"


@pytest.mark.parametrize(
    ("status", "output", "tests", "note"),
    [
        (0, "", SOME, "1 passed, 1 skipped"),
        (1, "", [*SOME, ("f.py::c", "failed")], "1 passed, 1 skipped, 1 failed; c"),
        (-11, "", [*SOME, ("f.py::c", None)], "1 passed, 1 skipped; ended with signal 11 in f.py::c"),
        (None, "", [*SOME, ("f.py::c", None)], "1 passed, 1 skipped; ran past the limit of 60 s in f.py::c"),
        (1, BREAKS, [*SOME, ("f.py::c", "failed")],
         "1 passed, 1 skipped, 1 failed; the device is broken after f.py::c: CUDA error: misaligned address"),
        (1, "E   ModuleNotFoundError: No module named 'x'\n", [], "no tests; ModuleNotFoundError: No module named 'x'"),
        (2, "", [], "no tests; ended with status 2 before the first test"),
    ],
)  # fmt: skip
def test_python_outcome(status, output, tests, note):
    outcome = python_tests.outcome(result(status, output), journal(len(tests), *tests))
    assert outcome.note == note and outcome.status == (DONE if status == 0 else FAILED)


def test_python_tests_that_did_not_run_are_counted():
    outcome = python_tests.outcome(result(-6, ""), journal(9, *SOME, ("f.py::c", None)) + '\n{"begin": "f.py')
    assert outcome.results["counts"] == {"passed": 1, "skipped": 1, "not run": 6}
    nothing = python_tests.outcome(result(5, ""), journal(0))
    assert nothing == Outcome(LEFT_OUT, "no test of a GPU")


def test_files_are_those_that_speak_of_a_gpu():
    names = [python_tests._name(path) for path in python_tests.files()]
    assert names[:3] == python_tests.FIRST[:3] and "build/test_readme" not in names
    assert set(python_tests.FIRST) <= set(names)
    assert python_tests.workers(SimpleNamespace(cores=1)) == 1 and python_tests.workers(SimpleNamespace(cores=64)) == 12


def document(complete=True, failed=(), rows=2, **changes):
    described = {"backend": "cuda", "device": GPU["device"], "fastreg_kernels": True} | changes
    return {"complete": complete, "environment": described, "rows": [{}] * rows, "failed": list(failed)}


def test_timings_are_of_this_device_with_fastregs_kernels_and_whole():
    def status(found=GPU, ended=0, **changes):
        return benchmarks.outcome(result(ended, ""), document(**changes), found).status

    assert status() == DONE
    assert status(backend="cpu", device="Slide Rule") == status(backend="cpu") == FAILED
    assert status(CPU | {"device": GPU["device"]}) == status(fastreg_kernels=False) == FAILED
    assert status(complete=False) == status(rows=0) == status(ended=130) == status(ended=None) == FAILED


def test_a_peer_that_fails_is_listed_and_no_failure():
    peer = {"op": "dropout", "shape": "8", "provider": "cudnn", "error": "no"}
    outcome = benchmarks.outcome(result(0, ""), document(failed=[peer]), GPU)
    assert outcome.status == DONE and outcome.results["failed"] == ["cudnn: dropout 8: no"]
    ours = benchmarks.outcome(result(1, ""), document(failed=[peer, peer | {"provider": "fastreg"}]), GPU)
    assert ours.status == FAILED and ours.note == "2 rows, 2 failures"


def test_compilers_first_complaint():
    assert builds.first_error("ok\na.cu(3): error: no such name\nninja: error\n") == ": a.cu(3): error: no such name"
    assert builds.first_error("fatal: cannot write: No space left on device\n").endswith("No space left on device")
    assert builds.first_error("all well\n") == ""


# The plan


def test_the_short_table_is_there_within_five_minutes(tmp_path):
    before = plan.PHASES[: [phase.name for phase in plan.PHASES].index("bench.short")]
    limits = {phase.name: phase.limit for phase in before}
    at_worst = max(limits["build.extension"], limits["build.kernels"]) + limits["tests.cpp"]
    assert at_worst <= plan.SHORT_TABLE_WITHIN and limits["environment"] < limits["build.kernels"]
    job = make_job(tmp_path)
    (short,) = (line for line in plan.describe(plan.PHASES, job, 560) if line.startswith("bench.short"))
    begins, estimate = map(int, re.findall(r"(\d+) s", short)[:2])
    assert begins + estimate <= plan.SHORT_TABLE_WITHIN


def test_the_plan_fits_its_budget_and_names_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "missing", lambda names: None)
    monkeypatch.setattr(machine, "find_sanitizer", lambda: Path("compute-sanitizer"))
    for budget in (60, 200, 560):
        lines = plan.describe(plan.PHASES, make_job(tmp_path), budget)
        assert [line.split()[0] for line in lines[1:-1]] == [phase.name for phase in plan.PHASES]
        assert int(lines[-1].split()[2]) <= budget
    assert "racecheck: batch norms" in lines[7] and "test_cuda.py" in lines[6] and "dropout_test" in lines[4]
    assert "codegen" not in "".join(lines)  # which needs no GPU


def test_the_files_that_a_run_leaves_are_few_enough():
    names = {"gpu_check.json", "logs.txt", *(f"{part}.json" for part in plan.SECONDS)}
    assert len(names) + 1 <= MOST_FILES  # and a chart; a part that is cut short has another name


# The bundle


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A job with a bundle that fits; sources can be set."""
    bundle.describe.cache_clear()
    monkeypatch.setattr(machine, "fingerprint", lambda names: "same")
    folder = tmp_path / "bundle"
    folder.mkdir()
    part = {"machine": "x86_64", "capability": "9.0", "sources": "same"}
    parts = {"kernels": part | {"file": "kernels_on_device"}}
    parts["extension"] = part | {"file": "_C.so", "torch": GPU["torch"], "suffix": GPU["suffix"]}
    for one in parts.values():
        (folder / one["file"]).touch()
    (folder / "bundle.json").write_text(json.dumps(parts))
    return make_job(tmp_path, bundle=folder)


def test_a_bundle_is_taken_when_it_fits(made):
    assert [bundle.misfit(made, name) for name in bundle.SOURCES] == [None, None]
    assert builds.estimate("build.kernels")(made) == 5
    made.found = GPU | {"torch": "2.1"}
    assert bundle.misfit(made, "build.extension") == "the bundle does not fit: torch 2.0 and 2.1"
    assert bundle.misfit(made, "build.kernels") is None
    assert builds.estimate("build.extension")(made) > 60
    made.found = GPU | {"capability": "10.0", "suffix": ".cpython-313-x86_64-linux-gnu.so"}
    assert "capability 9.0 and 10.0" in bundle.misfit(made, "build.kernels")
    assert "suffix .cpython-312-x86_64-linux-gnu.so and " in bundle.misfit(made, "build.extension")


def test_a_bundle_of_other_sources_or_none_is_not_taken(made, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "fingerprint", lambda names: "other")
    assert "sources same and other" in bundle.misfit(made, "build.kernels")
    assert bundle.misfit(make_job(tmp_path, bundle=tmp_path / "nothing"), "build.kernels") == ""
    monkeypatch.setattr(machine, "fingerprint", lambda names: "same")
    (made.bundle / "_C.so").unlink()
    assert bundle.misfit(made, "build.extension") == "the bundle lacks _C.so"


def test_what_a_bundle_lacks_is_said(tmp_path, monkeypatch, capsys):
    """Without an extension it is still of use; without the C++ tests it is not."""

    def kernels(folder, capability, cores):
        (folder / "kernels_on_device").write_text("x")
        return {"file": "kernels_on_device"}, ""

    monkeypatch.setattr(bundle, "make_kernels", kernels)
    monkeypatch.setattr(
        bundle, "make_extension", lambda *rest: (None, "it is of torch 2.0+cpu, which is no CUDA build")
    )
    assert bundle.main(["--out", str(tmp_path / "b")]) == 0
    said = capsys.readouterr()
    assert "gpu-bundle: without extension: it is of torch 2.0+cpu" in said.err and ": kernels, 0 MiB" in said.out
    assert json.loads((tmp_path / "b/bundle.json").read_text())["extension"] is None
    monkeypatch.setattr(bundle, "MOST_BYTES", 0)
    assert bundle.main(["--out", str(tmp_path / "b")]) == 1
    monkeypatch.setattr(bundle, "make_kernels", lambda *rest: (None, "there is no nvcc"))
    assert bundle.main(["--out", str(tmp_path / "b")]) == 1


# The machine


def test_cpu_timings_only_on_request(tmp_path):
    outcome = benchmarks.part("timings", 60)(make_job(tmp_path, CPU))
    assert outcome.status == LEFT_OUT and "--cpu-timings" in outcome.note


def test_without_compute_sanitizer_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "find_sanitizer", lambda: None)
    outcome = cpp_tests.sanitizers(make_job(tmp_path))
    assert outcome.status == FAILED and "no compute-sanitizer" in outcome.note


def test_a_missing_package_is_named_with_its_remedy():
    assert machine.missing(["pytest", "torch"]) is None
    note = machine.missing(["no-such-1", "pytest", "no-such-2", "no-such-1"])
    assert note.startswith("missing: no-such-1 no-such-2. Remedy: pip install no-such-1 no-such-2;")


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


def test_probe_describes_this_machine():
    import torch

    found = machine.probe()
    assert found["torch"] == torch.__version__
    assert found["backend"] == ("cuda" if torch.cuda.is_available() else "cpu")
