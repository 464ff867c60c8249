"""The benchmarks' command: result files, arguments, interruption, resumption. No test asserts a time."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastreg
from bench import __main__ as command
from bench import environment, failures, results
from bench.timings import charts, memory_chart, report, roofline, scaling, short, speed_chart, tensors
from bench.timings.cases import Case
from bench.timings.ops import MODES
from bench.timings.run import Job
from tests.bench.bench_fixtures import CPU, brief, one_thread, rows_of  # noqa: F401
from tests.bench.bench_fixtures import run_command as run_main
from tests.gpu_check.system import heed_interrupts

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"device": "abacus", "torch": "2.0", "fastreg_build": {"backends": []}}
ROWS = [{"a": 1, "b": 0.5}, {"a": 2, "b": 0.25}]
TIMINGS = ("--only", "timings", "--device", "cpu", "--providers", "torch")
FILES = {"timings.json", "timings.csv", "timings.png", "timings-overview.png"}


# Results


def test_result_files(tmp_path):
    paths = results.write_results(tmp_path, "part", ENVIRONMENT, ROWS, complete=True)
    assert [path.name for path in paths] == ["part.json", "part.csv"]
    document = json.loads(paths[0].read_text())
    assert document == {"complete": True, "environment": ENVIRONMENT, "rows": ROWS}
    with paths[1].open() as file:
        assert list(csv.DictReader(file)) == [
            {"device": "abacus", "torch": "2.0", "complete": "True", "a": "1", "b": "0.5"},
            {"device": "abacus", "torch": "2.0", "complete": "True", "a": "2", "b": "0.25"},
        ]


def test_partial_files_are_marked_and_replace_nothing(tmp_path):
    results.write_results(tmp_path, "part", ENVIRONMENT, ROWS, complete=True)
    results.write_results(tmp_path, "part", ENVIRONMENT, ROWS[:1], complete=False)
    assert json.loads((tmp_path / "part.json").read_text())["rows"] == ROWS
    assert json.loads((tmp_path / "part.partial.json").read_text())["complete"] is False
    assert "False" in (tmp_path / "part.partial.csv").read_text()
    results.write_results(tmp_path, "part", ENVIRONMENT, ROWS, complete=True)
    assert {path.name for path in tmp_path.iterdir()} == {"part.json", "part.csv"}


def test_tables():
    table = results.format_table(["name", "value"], [["a", "1"], ["bcdef", "12,345"]])
    assert table == "name    value\n-------------\na           1\nbcdef  12,345"
    values = (1234.5, 123.45, 12.345, 1.2345, 0.9996, 0.012345)
    assert [results.significant(value) for value in values] == ["1,234", "123", "12.3", "1.23", "1.00", "0.0123"]


def test_environment_keys_the_results(monkeypatch):
    described = environment.describe(CPU)
    assert described["torch"] == torch.__version__
    assert described["threads"] == torch.get_num_threads()
    assert described["device"] == described["cpu"] != ""
    assert json.dumps(described)
    for backends in (["cpu"], []):
        monkeypatch.setattr(fastreg, "build_info", lambda backends=backends: {"backends": backends})
        assert environment.describe(CPU)["fastreg_kernels"] == bool(backends)
    assert "WITHOUT" not in environment.caption(described | {"fastreg_kernels": True})
    assert "WITHOUT compiled cpu kernels" in environment.caption(described | {"fastreg_kernels": False})


def test_contention_is_what_others_took_beyond_the_spare_cores(monkeypatch):
    clock, others = iter([10.0, 12.0, 12.2, 14.0]), iter([100.0, 102.0, 102.4, 108.0])
    monkeypatch.setattr(environment.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(environment, "_seconds_of_others", lambda: next(others))
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    contention = environment.Contention()
    assert contention.since_last() == 0  # one core busy elsewhere, and one to spare
    assert contention.since_last() == 0  # too soon to tell
    assert contention.since_last() == 1  # three busy elsewhere: two of ours
    assert "!" not in report.report(rows_of())
    assert "1.00 (1.00-1.00)!" in report.report([row | {"contention": 0.5} for row in rows_of()])


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc/stat")
def test_own_work_is_not_the_others(monkeypatch):
    everything = environment._seconds_of_others()
    own = environment._own_seconds()
    monkeypatch.setattr(environment, "_own_seconds", lambda: own + 70.0)
    assert everything - environment._seconds_of_others() == pytest.approx(70, abs=5)
    assert everything > 0


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_work_of_children_is_own_work():
    """torch.compile has others compile for it."""
    before = environment._own_seconds()
    line = "import time\nwhile time.process_time() < 1: pass\nprint('done', flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", line], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    assert environment._own_seconds() - before > 0.9
    child.communicate(b"\n")
    assert environment._own_seconds() - before > 0.9  # also when it has ended


# Charts


def test_speed_chart_compares_with_the_best_eager_peer():
    case = Case("batch_norm", "forward", (2, 2))
    rows = rows_of(case, torch=[3.0], torch_without_cudnn=[2.0], compile=[1.0], fastreg=[4.0])
    assert speed_chart.best_ratios(rows) == {("batch_norm", "forward", "2x2  fp32"): (0.5, 0.5, 0.5)}
    assert speed_chart.best_ratios(rows, ["compile"]) == {("batch_norm", "forward", "2x2  fp32"): (0.25,) * 3}


def test_roofline_is_the_copys_median_by_size():
    rows = []
    for size, seconds in ((4, 1.0), (4, 3.0), (2, 1.0)):
        rows += rows_of(Case("dropout", "both", (size,)), copy=[seconds])
    assert roofline.copy_times(rows) == [(16, 1e6), (32, 2e6)]


def test_memory_chart_takes_the_largest_tensor():
    rows = []
    for size in (4, 8):
        rows += [row | {"saved_bytes": size * 4 * size} for row in rows_of(Case("dropout", "both", (size,)))]
    assert memory_chart.kept(rows) == {"dropout": {"torch": 8, "fastreg": 8}}


def test_scaling_chart_takes_what_has_the_most_sizes():
    rows = [row for size in (8, 2, 4, 1) for row in rows_of(Case("dropout", "both", (size,)))]
    rows += [row for size in (8, 2, 4) for row in rows_of(Case("dropout", "forward", (size,)))]
    rows += [row for size in (8, 2) for row in rows_of(Case("alpha_dropout", "forward", (size,)))]
    assert list(scaling.series(rows)) == [("dropout", "both", "float32", "contiguous")]


def test_charts_of_rows_of_every_kind(tmp_path):
    rows = [row for size in (8, 2, 4) for row in rows_of(Case("dropout", "both", (size,)), compile=[2.0])]
    rows += rows_of(Case("batch_norm", "evaluation", (2, 3, 4, 5), torch.bfloat16, "channels_last"))
    for chosen in (rows, rows[-3:], rows[:1]):
        for name, chart in charts.CHARTS.items():
            chart(chosen, "title", "caption", tmp_path / f"chart{name}.png")
            assert (tmp_path / f"chart{name}.png").read_bytes().startswith(b"\x89PNG")


def test_words_of_charts():
    assert [tensors.with_unit(size) for size in (12, 1536, 3 << 20, 4 << 30)] == ["12 B", "1.5 KiB", "3 MiB", "4 GiB"]
    row = Case("batch_norm", "both", (2, 3, 4, 5), torch.bfloat16, "channels_last").describe()
    assert (tensors.label(row), tensors.size(row)) == ("2x3x4x5  bf16  channels-last", 240)


# The command


def run_command(*arguments):
    return run_main(command.main, *arguments)


def test_timings(brief, tmp_path, capsys):  # noqa: F811
    assert run_command("--quick", *TIMINGS, "--out", tmp_path / "new") == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == FILES
    document = json.loads((tmp_path / "new/timings.json").read_text())
    assert document["complete"] is True
    assert {row["provider"] for row in document["rows"]} == {"copy", "torch", "fastreg"}
    row = next(
        row for row in document["rows"] if (row["op"], row["mode"], row["provider"]) == ("dropout", "both", "fastreg")
    )
    assert (row["saved_bytes"], row["launches"]) == (16, None)
    assert row["peak_bytes"] > 0
    assert "layer by layer" in capsys.readouterr().out


def test_training(tmp_path):
    assert run_command("--quick", "--only", "training", "--device", "cpu", "--out", tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"training.json", "training.png"}
    assert {run["layers"] for run in json.loads((tmp_path / "training.json").read_text())["runs"]} == {
        "torch",
        "fastreg",
    }


def test_selection(brief, tmp_path, capsys):  # noqa: F811
    chosen = ["--ops", "drop_path", "batch_norm", "--modes", "both", "evaluation", "--shapes", "4x3x2x2", "8x5"]
    chosen += ["--dtypes", "fp32", "bf16", "--layouts", "channels_last", "--providers", "torch", "compile"]
    assert run_command("--only", "timings", "--device", "cpu", *chosen, "--out", tmp_path) == 0
    rows = json.loads((tmp_path / "timings.json").read_text())["rows"]
    assert {(row["op"], row["mode"]) for row in rows} == {
        ("drop_path", "both"),
        ("batch_norm", "both"),
        ("batch_norm", "evaluation"),
    }
    assert {(row["shape"], row["layout"]) for row in rows} == {("4x3x2x2", "channels_last")}
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    assert {row["provider"] for row in rows} == {"copy", "torch", "compile", "fastreg"}


def test_resume_adds_what_is_missing(brief, tmp_path, monkeypatch, capsys):  # noqa: F811
    measured = []
    whole = Job.run

    def interrupted(self):
        for rows in whole(self):
            measured.extend(row["mode"] for row in rows[:1])
            yield rows
            if rows and len(measured) == 2:
                raise KeyboardInterrupt

    arguments = (*TIMINGS, "--quick", "--ops", "dropout", "--out", tmp_path)
    monkeypatch.setattr(Job, "run", interrupted)
    assert run_command(*arguments, "--resume") == 130
    assert "nothing to resume" in capsys.readouterr().err
    before = json.loads((tmp_path / "timings.partial.json").read_text())["rows"]
    assert run_command(*arguments, "--resume") == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert measured == ["forward", "backward", "both"]
    after = json.loads((tmp_path / "timings.json").read_text())["rows"]
    assert after[: len(before)] == before and len(after) == 9
    monkeypatch.setattr(Job, "run", whole)
    assert run_command(*arguments[:-4], "--ops", "batch_norm", "--modes", "forward", "--out", tmp_path, "--resume") == 0
    grown = json.loads((tmp_path / "timings.json").read_text())["rows"]
    assert grown[:9] == after and {row["op"] for row in grown[9:]} == {"batch_norm"}


@pytest.mark.parametrize(("change", "message"), [
    ({"torch": "1.0"}, f"torch 1.0 and {torch.__version__}"), ({"fastreg_code": "0"}, "fastreg_code 0 and "),
    ({"threads": 77}, "threads 77 and 1"),
])  # fmt: skip
def test_resume_elsewhere_is_refused(change, message, tmp_path, capsys):
    described = environment.describe(CPU) | change
    results.write_results(tmp_path, "timings", described, rows_of(), complete=False)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert run_command("--quick", *TIMINGS, "--out", tmp_path, "--resume") == 2
    assert (
        f"--resume must go on where {tmp_path}/timings.partial.json was written, got {message}"
        in capsys.readouterr().err
    )
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "timings.partial.json").write_text("{")
    assert run_command("--quick", *TIMINGS, "--out", tmp_path, "--resume") == 2
    assert "--resume must be a JSON file of results, got" in capsys.readouterr().err


def test_json_only_is_written_as_it_comes(brief, tmp_path, monkeypatch):  # noqa: F811
    """So that what ends the process, whatever it is, leaves what there was, and the name of what ran."""
    seen, whole = [], Job.run

    def watched(self):
        for rows in whole(self):
            yield rows
            seen.append(json.loads((tmp_path / "timings.partial.json").read_text()))

    monkeypatch.setattr(Job, "run", watched)
    arguments = ("--quick", *TIMINGS, "--ops", "dropout", "--json-only", "--out", tmp_path)
    assert run_command(*arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"timings.json"}
    assert [len(document["rows"]) for document in seen] == [0, 3, 3, 6, 6, 9]
    running = [[failure["mode"] for failure in document.get("failed", [])] for document in seen]
    assert running == [["forward"], [], ["backward"], [], ["both"], []]


def test_resume_skips_what_failed_or_did_not_end(brief, tmp_path):  # noqa: F811
    case = Case("dropout", "forward", (32, 100))
    failed = [case.describe() | {"provider": "all", "error": failures.DID_NOT_END}]
    results.write_results(tmp_path, "timings", environment.describe(CPU), [], complete=False, failed=failed)
    arguments = ("--quick", *TIMINGS, "--ops", "dropout", "--out", tmp_path, "--resume")
    assert run_command(*arguments) == 1
    document = json.loads((tmp_path / "timings.json").read_text())
    assert document["failed"] == failed and {row["mode"] for row in document["rows"]} == {"backward", "both"}


def test_a_broken_device_has_a_status_of_its_own(tmp_path, monkeypatch, capsys):
    def run(self):
        yield rows_of()
        raise failures.BrokenDevice("dropout forward 8")

    monkeypatch.setattr(Job, "run", run)
    assert run_command("--quick", *TIMINGS, "--json-only", "--out", tmp_path) == 3
    assert "the device is broken after dropout forward 8" in capsys.readouterr().err
    assert json.loads((tmp_path / "timings.partial.json").read_text())["rows"]


def test_short_table(brief, tmp_path):  # noqa: F811
    assert run_command("--quick", "--only", "short", "--device", "cpu", "--json-only", "--out", tmp_path) == 0
    rows = json.loads((tmp_path / "short.json").read_text())["rows"]
    assert {(row["op"], row["mode"]) for row in rows} == {(op, mode) for op in short.OPS for mode in MODES[:2]}
    assert {row["provider"] for row in rows} == {"torch", "fastreg", "copy"}


def test_fail_if_slower(brief, tmp_path, monkeypatch, capsys):  # noqa: F811
    arguments = ("--quick", *TIMINGS, "--out", tmp_path, "--fail-if-slower", "1.5")
    monkeypatch.setattr(Job, "run", lambda self: iter([rows_of(torch=[0.5])]))
    assert run_command(*arguments) == 1
    assert "slower: dropout forward 4 float32 contiguous: 2.00 times the time of torch" in capsys.readouterr().err
    monkeypatch.setattr(Job, "run", lambda self: iter([rows_of()]))
    assert run_command(*arguments) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "everything"], "argument --only: invalid choice: 'everything'"),
        (["--epochs", "0"], "argument --epochs: must be a whole number from 1, got 0"),
        (["--seeds", "-1"], "argument --seeds: must be a whole number from 1, got -1"),
        (["--threads", "two"], "argument --threads: must be a whole number from 1, got two"),
        (["--device", "tpu"], "--device must be auto, cpu, cuda or cuda:N, got tpu"),
        (["--device", "cuda:99"], "--device must name a device that is there, got cuda:99 (torch "),
        (["--ops", "dropout", "dropin"], "argument --ops: invalid choice: 'dropin' (choose from 'dropout', "),
        (["--modes", "sideways"], "argument --modes: invalid choice: 'sideways' (choose from 'forward', 'backward', "),
        (["--providers", "keras"], "argument --providers: invalid choice: 'keras' (choose from 'torch', "),
        (["--dtypes", "int8"], "argument --dtypes: invalid choice: 'int8' (choose from 'fp32', 'bf16', 'fp16')"),
        (["--networks", "vgg"], "argument --networks: invalid choice: 'vgg' (choose from 'resnet50', 'mlp', "),
        (["--variants", "fast"], "argument --variants: invalid choice: 'fast' (choose from 'plain', 'converted', "),
        (["--layouts", "rows"], "argument --layouts: invalid choice: 'rows' (choose from 'contiguous', "),
        (["--shapes", "vgg"], "argument --shapes: must be one of resnet50-32, resnet50-64, "),
        (["--providers", "apex"], "--providers must be installed: apex: cannot import apex.contrib.groupbn"),
        (["--ops", "dropout2d", "--shapes", "3x3"], "must leave something to time: no operator takes such tensors"),
        (["--minutes", "0"], "argument --minutes: must be a number above 0, got 0"),
        (["--fail-if-slower", "much"], "argument --fail-if-slower: must be a number above 0, got much"),
        (["--what"], "unrecognized arguments: --what"),
    ],
)
def test_bad_arguments_end_it_before_any_work(arguments, message, tmp_path, capsys):
    assert run_command("--out", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "folder", "/proc"):
        assert run_command("--out", out) == 2
        assert f"--out must be a folder that can be written, got {out}" in capsys.readouterr().err


def test_threads(brief, tmp_path):  # noqa: F811
    assert run_command("--quick", *TIMINGS, "--ops", "dropout", "--threads", 2, "--out", tmp_path) == 0
    assert json.loads((tmp_path / "timings.json").read_text())["environment"]["threads"] == 2


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_what_was_measured_outlives_an_interruption(failure, tmp_path, monkeypatch, capsys):
    rows = rows_of()

    def run(self):
        yield rows
        raise failure

    monkeypatch.setattr(Job, "run", run)
    if failure is KeyboardInterrupt:
        assert run_command("--device", "cpu", "--out", tmp_path) == 130
    else:
        with pytest.raises(RuntimeError):
            run_command("--device", "cpu", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name.replace(".", ".partial.") for name in FILES}
    document = json.loads((tmp_path / "timings.partial.json").read_text())
    assert [row.pop("contention") >= 0 for row in document["rows"]] == [True] * len(rows)
    assert document["rows"] == rows
    assert "(partial" in capsys.readouterr().out


def test_ctrl_c(tmp_path):
    line = [sys.executable, "-m", "bench", "--only", "training", "--device", "cpu", "--threads", "1"]
    line += ["--epochs", "100000", "--out", str(tmp_path)]
    process = subprocess.Popen(
        line, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=heed_interrupts
    )
    try:
        bar = b""
        while not re.search(rb"\b[1-9]\d*/100000", bar):
            bar += process.stderr.read1() or pytest.fail(f"ended by itself: {bar.decode()}")
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, rest.decode()
    assert b"Traceback" not in rest
    assert {path.name for path in tmp_path.iterdir()} == {"training.partial.json", "training.partial.png"}
    document = json.loads((tmp_path / "training.partial.json").read_text())
    assert document["complete"] is False
    assert document["runs"]


@pytest.mark.parametrize("command", ["bench", "bench.training"])
def test_ctrl_c_while_modules_are_imported(command, tmp_path):
    (tmp_path / "torch.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    line = [sys.executable, "-m", command, "--help"]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(line, cwd=ROOT, env=environ, capture_output=True, preexec_fn=heed_interrupts)
    assert (ended.returncode, ended.stderr, ended.stdout) == (130, b"interrupted\n", b"")
