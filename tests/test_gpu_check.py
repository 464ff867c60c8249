"""The phases of tests/gpu_check with fakes in their place, and tests/on_device on a fake CUDA runtime."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.gpu_check import __main__ as command
from tests.gpu_check import machine, phases, report, runner
from tests.gpu_check.runner import DONE, FAILED, LEFT_OUT, Job, Outcome, Phase

ROOT = Path(__file__).parent.parent
GPU = {"backend": "cuda", "device": "Abacus 9000", "capability": "9.0", "torch": "2.0", "cuda": "13.0"}
CPU = {"backend": "cpu", "device": "Slide Rule", "torch": "2.0", "cuda": None}
SOURCES = {"commit": "c0ffee", "modified": False, "fingerprint": "1"}


def make_job(folder, found=GPU, sources=SOURCES, seconds=60):
    results = report.Report(folder / "results", found["device"], found["torch"], sources)
    return Job(found, sources, results, folder / "work", seconds)


class Fakes:
    """Phases that note that they ran, and give what they are told to."""

    def __init__(self):
        self.ran = []

    def phase(self, name, result=DONE, **options):
        def run(job):
            self.ran.append(name)
            if isinstance(result, BaseException):
                raise result
            return Outcome(result, f"note of {name}", {"answer": 42})

        return Phase(name, run, **options)


@pytest.fixture
def fakes():
    return Fakes()


def records(folder):
    return json.loads((folder / "results/gpu_check.json").read_text())["phases"]


def run(phases, job, **options):
    return runner.run_phases(phases, job, say=lambda line: None, **options)


# Phases


def test_a_failure_does_not_stop_the_others(fakes, tmp_path):
    broken = fakes.phase("b", ZeroDivisionError("by zero"))
    assert not run([fakes.phase("a", FAILED), broken, fakes.phase("c")], make_job(tmp_path))
    assert fakes.ran == ["a", "b", "c"]
    found = records(tmp_path)
    assert [found[name]["status"] for name in "abc"] == [FAILED, FAILED, DONE]
    assert found["b"]["note"] == "ZeroDivisionError: by zero"
    assert any("Traceback" in line for line in found["b"]["log"])
    assert found["c"]["results"] == {"answer": 42}


def test_each_result_is_there_before_the_next_phase(fakes, tmp_path):
    seen = []
    look = Phase("b", lambda job: seen.append(list(records(tmp_path))) or Outcome(DONE))
    assert run([fakes.phase("a"), look], make_job(tmp_path))
    assert seen == [["a"]]


def test_interruption_keeps_what_is_there(fakes, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run([fakes.phase("a"), fakes.phase("b", KeyboardInterrupt()), fakes.phase("c")], make_job(tmp_path))
    assert fakes.ran == ["a", "b"]
    found = records(tmp_path)
    assert (found["a"]["status"], found["b"]["status"], found["b"]["note"]) == (DONE, FAILED, "interrupted")
    assert run([fakes.phase(name) for name in "abc"], make_job(tmp_path), resume=True)
    assert fakes.ran == ["a", "b", "b", "c"]


def test_resume_skips_what_is_done(fakes, tmp_path):
    several = [fakes.phase("a"), fakes.phase("b", FAILED), fakes.phase("c", LEFT_OUT)]
    for _ in range(2):
        run(several, make_job(tmp_path), resume=True)
    assert fakes.ran == ["a", "b", "c", "b", "c"]


def test_without_resume_all_run_again(fakes, tmp_path):
    for _ in range(2):
        run([fakes.phase("a")], make_job(tmp_path))
    assert fakes.ran == ["a", "a"]


@pytest.mark.parametrize(
    ("found", "sources", "again"),
    [
        (GPU, SOURCES, False),
        (GPU, SOURCES | {"commit": "another, of the same files"}, False),
        (GPU, SOURCES | {"fingerprint": "2"}, True),
        (GPU | {"torch": "2.1"}, SOURCES, True),
    ],
)
def test_resume_is_for_the_same_sources_and_torch(fakes, tmp_path, found, sources, again):
    run([fakes.phase("a")], make_job(tmp_path))
    run([fakes.phase("a")], make_job(tmp_path, found, sources), resume=True)
    assert fakes.ran == ["a", "a"] if again else fakes.ran == ["a"]


def test_resume_misses_products(fakes, tmp_path):
    product = tmp_path / "product"
    phase = fakes.phase("a", products=lambda job: [product])
    product.touch()
    for _ in range(2):
        run([phase], make_job(tmp_path), resume=True)
    assert fakes.ran == ["a"]
    product.unlink()
    run([phase], make_job(tmp_path), resume=True)
    assert fakes.ran == ["a", "a"]


def test_what_is_needed_must_be_of_these_sources(fakes, tmp_path):
    user = fakes.phase("b", needs=["a"])
    assert not run([user], make_job(tmp_path))
    assert not run([fakes.phase("a", FAILED), user], make_job(tmp_path))
    assert run([fakes.phase("a"), user], make_job(tmp_path))
    assert not run([user], make_job(tmp_path, sources=SOURCES | {"fingerprint": "2"}))
    assert fakes.ran == ["a", "a", "b"]
    assert "needs a" in records(tmp_path)["b"]["note"]


def test_without_a_gpu_it_is_left_out_and_said(fakes, tmp_path):
    job = make_job(tmp_path, CPU)
    assert run([fakes.phase("a"), fakes.phase("b", needs_gpu=False)], job)
    assert fakes.ran == ["b"]
    assert job.report.line("a") == "left out: a: needs a GPU"
    assert job.report.line("c") == "not run: c"


def test_results_of_other_sources_are_not_presented_as_of_these(fakes, tmp_path):
    run([fakes.phase("a")], make_job(tmp_path))
    line = make_job(tmp_path, sources=SOURCES | {"fingerprint": "2"}).report.line("a")
    assert line.startswith("not run with these sources: a (done on") and "c0ffee" in line


def test_a_folder_is_of_one_device(fakes, tmp_path):
    run([fakes.phase("a")], make_job(tmp_path))
    with pytest.raises(ValueError, match="holds results of Abacus 9000, and this is Slide Rule"):
        make_job(tmp_path, CPU)


def test_number_of_files_is_limited(tmp_path):
    job = make_job(tmp_path)
    for number in range(report.MOST_FILES):
        (job.report.folder / f"{number}.csv").touch()
    assert job.report.too_many_files() is None
    (job.report.folder / "one more").touch()
    assert "one more" in job.report.too_many_files()


def test_the_files_that_phases_write_are_few_enough():
    timings = {f"timings{partial}.{suffix}" for partial in ("", ".partial") for suffix in ("json", "csv", "png")}
    assert len(timings | {"gpu_check.json"}) <= report.MOST_FILES


# Commands


def test_a_command_is_stopped_at_the_limit_and_may_finish(tmp_path):
    code = "import time\nprint('begun', flush=True)\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('kept')"
    seen = []
    phase = Phase("a", lambda job: seen.append(job.command(sys.executable, "-c", code)) or Outcome(DONE))
    run([phase], make_job(tmp_path, seconds=1))
    assert seen == [(None, "begun\nkept\n")]


def test_a_command_that_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "SECONDS_TO_END", 0.2)
    seen = []
    phase = Phase(
        "a", lambda job: seen.append(job.command("sh", "-c", "trap '' INT; sleep 3; echo late")) or Outcome(DONE)
    )
    run([phase], make_job(tmp_path, seconds=0.2))
    assert seen == [(None, "")]


def test_a_command_sees_the_environment_that_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREG_EXPECT", "cpu")
    seen = []
    code = "import os; print(os.environ.get('FASTREG_EXPECT'))"
    for environ in ({}, {"FASTREG_EXPECT": "cuda"}):
        phase = Phase(
            "a", lambda job, e=environ: seen.append(job.command(sys.executable, "-c", code, **e)) or Outcome(DONE)
        )
        run([phase], make_job(tmp_path))
    assert seen == [(0, "None\n"), (0, "cuda\n")]


def test_logs_are_trimmed():
    log = f"first {ROOT}/x\n" + "\n".join(map(str, range(500))) + "\n1 of 2\r2 of 2\n" + "x" * 1000 + "\n"
    lines = report.trimmed(log)
    assert lines[0] == "first ./x" and lines[-2] == "2 of 2" and lines[-1] == "x" * report.LINE_LENGTH
    assert len(lines) == report.FIRST_LINES + report.LAST_LINES + 1 and "... 458 lines ..." in lines
    assert report.trimmed("") == [] and report.trimmed("a\nb\n") == ["a", "b"]


# What the phases make of what the tools say

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


# The command


@pytest.fixture
def main(fakes, monkeypatch, tmp_path):
    """main() with fake phases of which one is in a group; found can be set."""

    def call(*argv, found=GPU, group=DONE, last=DONE):
        several = [fakes.phase("a"), fakes.phase("b.one", group), fakes.phase("b.two"), fakes.phase("c", last)]
        monkeypatch.setattr(command, "PHASES", several)
        monkeypatch.setattr(machine, "probe", lambda: found)
        monkeypatch.setattr(machine, "ROOT", tmp_path)
        return command.main(list(argv))

    return call


def test_exit_status_and_summary(main, fakes, capsys):
    assert main(group=FAILED) == 1
    assert fakes.ran == ["a", "b.one", "b.two", "c"]
    assert {"done: a: note of a", "failed: b.one: note of b.one"} <= set(capsys.readouterr().out.splitlines())
    assert main("--resume") == 0
    assert fakes.ran[4:] == ["b.one"]
    assert main(last=KeyboardInterrupt()) == 130


def test_a_phase_or_a_group_by_name(main, fakes, capsys):
    assert main("--phase", "b", "--phase", "a") == 0
    assert fakes.ran == ["a", "b.one", "b.two"]
    assert "not run: c" in capsys.readouterr().out.splitlines()
    assert main("--phase", "b.two") == 0
    assert fakes.ran[3:] == ["b.two"]
    with pytest.raises(SystemExit):
        main("--phase", "no such")


def test_a_machine_without_a_gpu_ends_well_and_names_each_phase(main, tmp_path, capsys):
    assert main(found=CPU) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(f"left out: {name}: needs a GPU" in lines for name in ("a", "b.one", "b.two", "c"))
    assert [path.name for path in (tmp_path / "bench/results").iterdir()] == ["cpu-slide-rule"]


def test_too_many_files_fail(main, tmp_path, capsys):
    folder = tmp_path / "bench/results/abacus-9000"
    folder.mkdir(parents=True)
    for number in range(report.MOST_FILES):
        (folder / str(number)).touch()
    assert main() == 1
    assert "at most 8 files, got 9" in capsys.readouterr().err


def test_without_torch_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(machine, "ask", lambda *command, **options: (1, "", "Traceback\nModuleNotFoundError: torch"))
    assert command.main([]) == 1
    assert "ModuleNotFoundError: torch" in capsys.readouterr().err


def test_probe_describes_this_machine():
    import torch

    found = machine.probe()
    assert found["torch"] == torch.__version__
    assert found["backend"] == ("cuda" if torch.cuda.is_available() else "cpu")


# The C++ tests on a device, here on a fake CUDA runtime


@pytest.fixture(scope="module")
def selftest(tmp_path_factory):
    program = tmp_path_factory.mktemp("on_device") / "selftest"
    folder = ROOT / "tests/on_device"
    includes = [f"-I{path}" for path in (folder / "selftest", folder, ROOT / "tests", ROOT / "tests/cpp")]
    sources = [folder / "executor.cpp", ROOT / "tests/cpp/testing.cpp", folder / "selftest/selftest.cpp"]
    compiler = os.environ.get("CXX", "c++")
    subprocess.run(
        [
            compiler,
            "-std=c++17",
            "-DFASTREG_ON_DEVICE",
            "-Wall",
            "-Wextra",
            "-Werror",
            *includes,
            *sources,
            "-o",
            program,
        ],
        check=True,
    )

    def call(*arguments, **environ):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, env={**os.environ, **environ})
        return done.returncode, done.stdout

    return call


@pytest.mark.parametrize("bare", [False, True])
def test_on_device_correct(selftest, bare):
    status, output = selftest("correct", **({"FASTREG_ON_DEVICE_BARE": "1"} if bare else {}))
    assert status == 0, output
    assert output.endswith("5 tests, 0 failed, 1 cut short\n")


def test_on_device_planted(selftest):
    status, output = selftest("planted")
    assert status == 1
    assert output.count("FAILED planted") == 5
    assert output.endswith("5 tests, 5 failed, 0 cut short\n")


def test_on_device_without_a_device(selftest):
    status, output = selftest(FAKE_NO_DEVICE="1")
    assert status == 77 and output.startswith("no CUDA device, nothing has been tested")
