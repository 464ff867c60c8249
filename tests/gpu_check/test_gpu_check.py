"""The phases of tests/gpu_check, with fakes in their place, and its command."""

import json
import sys
from pathlib import Path

import pytest

from tests.gpu_check import __main__ as command
from tests.gpu_check import machine, report, runner
from tests.gpu_check.gpu_check_jobs import CPU, GPU, SOURCES, make_job
from tests.gpu_check.runner import DONE, FAILED, LEFT_OUT, Outcome, Phase

ROOT = Path(__file__).resolve().parents[2]


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
