"""What other programs disturbed stays out of bench/results, unless it is asked for."""

import json

import pytest

from bench import __main__ as bench
from bench import environment, quiet, renew
from bench.timings.run import Job
from bench.training import __main__ as training
from tests.bench.bench_fixtures import rows_of, run_command

ARGUMENTS = ("--quick", "--only", "timings", "--device", "cpu", "--providers", "torch", "--json-only")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One that is guarded; what is kept out of it goes to `refuge`."""
    monkeypatch.setattr(quiet, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(quiet, "REFUGE", tmp_path / "refuge")
    monkeypatch.setattr(quiet, "SECONDS_TO_LISTEN", 0)
    monkeypatch.setattr(Job, "run", lambda self: iter([rows_of(), rows_of()]))
    return tmp_path / "results/abacus"


@pytest.fixture
def others(monkeypatch):
    """others(shares): what other programs take, at each time that it is asked."""

    def take(*shares):
        left = iter(shares)
        monkeypatch.setattr(environment.Contention, "since_last", lambda self: next(left))

    return take


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_quiet_run_is_kept(folder, others, tmp_path):
    others(0.01, 0.0, 0.05)
    assert run_command(bench.main, *ARGUMENTS, "--out", folder) == 0
    assert files(tmp_path) == ["results/abacus/timings.json"]


def test_a_disturbed_run_goes_elsewhere(folder, others, tmp_path, capsys):
    others(0.01, 0.0, 0.5)
    assert run_command(bench.main, *ARGUMENTS, "--out", folder) == quiet.STATUS
    assert files(tmp_path) == ["refuge/abacus/timings.json"]
    expected = (
        f"not written to {folder}: timings: other programs took 25% of the CPU time: see {tmp_path}/refuge/abacus"
    )
    assert expected in capsys.readouterr().err
    others(0.5, 0.5)
    assert run_command(bench.main, *ARGUMENTS, "--out", folder, "--disturbed") == 0
    assert "results/abacus/timings.json" in files(tmp_path)
    others(0.5, 0.5)
    assert run_command(bench.main, *ARGUMENTS, "--out", tmp_path / "mine") == 0  # nobody guards it


def test_a_busy_machine_is_told_before_the_work(folder, others, tmp_path, capsys):
    for command, arguments in ((bench.main, ARGUMENTS), (training.main, ("digits-dropout", "--device", "cpu"))):
        others(0.04)
        assert run_command(command, *arguments, "--out", folder) == 2
        assert (
            "must be a folder outside bench/results while other programs take 4% of the CPU" in capsys.readouterr().err
        )
    assert files(tmp_path) == []


def test_trainings_are_kept_out_as_well(folder, others, tmp_path):
    arguments = ("digits-dropout", "--device", "cpu", "--epochs", 1, "--seeds", 1, "--threads", 1)
    others(0.0, 0.5)
    assert run_command(training.main, *arguments, "--out", folder / "training") == quiet.STATUS
    assert files(tmp_path) == [f"refuge/abacus/training/digits-dropout.{suffix}" for suffix in ("json", "png")]
    document = json.loads((tmp_path / "refuge/abacus/training/digits-dropout.json").read_text())
    assert not any("torch's seconds" in key for line in document["summary"] for key in line)  # no speed of such epochs
    others(0.0, 0.0)
    assert run_command(training.main, *arguments, "--out", folder / "training") == 0
    document = json.loads((folder / "training/digits-dropout.json").read_text())
    assert any("torch's seconds" in key for line in document["summary"] for key in line)


def test_committed_results_are_guarded():
    assert quiet.guards(quiet.ROOT / "bench/results/cpu/training") and not quiet.guards(quiet.ROOT / "bench/out")


# Renewing


@pytest.mark.parametrize(
    ("model", "threads", "name"),
    [
        ("Intel(R) Xeon(R) Processor", 2, "cpu-intel-xeon-avx512-2-threads"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 1, "cpu-intel-xeon-platinum-8481c-avx512-1-thread"),
        ("AMD EPYC 7R13 48-Core Processor", 2, "cpu-amd-epyc-7r13-avx512-2-threads"),
    ],
)
def test_folders(model, threads, name):
    assert renew.folder_name(model, "avx512", threads) == name


def test_one_command_renews_all(capsys, monkeypatch):
    ran = []
    monkeypatch.setattr(renew.subprocess, "run", lambda command, cwd: ran.append(command[2:]) or Status(0))
    assert run_command(renew.main, "--dry-run") == 0 and not ran
    assert run_command(renew.main) == 0
    assert [command[0] for command in ran] == ["bench"] * 4 + ["bench.data", "bench.training"] * 2 + list(LAST)
    measuring = [command for command in ran[:8] if command[0] != "bench.data"]
    for command, main in zip(measuring, [bench] * 4 + [training] * 2, strict=True):
        with monkeypatch.context() as patch:
            patch.setattr(quiet, "check", lambda args: True)
            patch.setattr(bench.results, "prepare_folder", lambda folder: None)
            args, parts = main.parse(command[1:])
        assert quiet.guards(args.out) and len(parts) == (8 if main is training else 1)
    ran.clear()
    monkeypatch.setattr(renew.subprocess, "run", lambda command, cwd: ran.append(command[2:]) or Status(4))
    assert run_command(renew.main, "timings") == 4 and len(ran) == 1
    assert run_command(renew.main, "timing") == 2
    assert (
        "PART must be one of timings, users, end-to-end, kernelbench, training, studies, got timing"
        in capsys.readouterr().err
    )


LAST = ("bench.redraw", "bench.readme")


class Status:
    def __init__(self, returncode):
        self.returncode = returncode
