"""The benchmarks: statistics, fairness, result files, arguments, interruption. No test asserts a time."""

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fastreg
from bench import __main__ as command
from bench import charts, environment, results, timing
from bench.cases import Case, cases
from bench.providers import FASTREG, TORCH, Provider, providers
from tests.gpu_check.runner import heed_interrupts

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
ENVIRONMENT = {"device": "abacus", "torch": "2.0", "fastreg_build": {"backends": []}}
ROWS = [{"a": 1, "b": 0.5}, {"a": 2, "b": 0.25}]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other take long where the cores are shared, and the work here is tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def brief(monkeypatch):
    """Two rounds of a few calls for every case."""
    monkeypatch.setattr(timing, "ROUNDS", (2, 2))
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0)
    monkeypatch.setattr(timing, "SECONDS_PER_CASE", {True: 0, False: 0})
    monkeypatch.setitem(timing.POOL_BYTES, "cpu", 0)


# Timings


def test_quantiles_interpolate():
    assert timing.quantiles([5, 1, 4, 2, 3]) == pytest.approx([1.8, 3, 4.2])
    assert timing.quantiles([7]) == [7, 7, 7]


@pytest.mark.parametrize(
    ("op", "direction", "accesses"),
    [
        ("dropout", "forward", 2),
        ("dropout", "backward", 2),
        ("dropout", "both", 4),
        ("batch_norm", "forward", 2),
        ("batch_norm", "backward", 3),
        ("batch_norm", "both", 5),
        ("batch_norm", "evaluation", 2),
    ],
)
def test_necessary_bytes(op, direction, accesses):
    assert Case(op, direction, (32, 100)).necessary_bytes == accesses * 3200 * 4
    assert Case(op, direction, (2, 3, 4, 5), torch.bfloat16).necessary_bytes == accesses * 120 * 2


def test_cases_cover_the_sizes_once():
    everything = cases()
    assert len(set(everything)) == len(everything)
    assert {(32, 100), (64, 64, 56, 56)} <= {case.shape for case in everything if case.op == "dropout"}
    assert {(32, 100), (64, 64, 56, 56)} <= {case.shape for case in everything if case.op == "batch_norm"}
    assert {case.layout for case in everything if case.shape == (32, 64, 56, 56)} == {"contiguous", "channels_last"}


def test_ratio_is_paired_by_round():
    samples = {"copy": [1e-6, 1e-6, 1e-6], "torch": [2e-6, 40e-6, 9e-6], "fastreg": [1e-6, 10e-6, 3e-6]}
    rows = {row["provider"]: row for row in timing.summarise(Case("batch_norm", "backward", (10, 25)), samples)}
    assert rows["torch"]["ratio"] == pytest.approx(3)  # of 2, 4 and 3; the medians' ratio is 3 as well, so also:
    assert rows["torch"]["ratio_80"] == pytest.approx(3.6)
    assert rows["fastreg"]["ratio"] == 1
    assert rows["fastreg"]["us"] == pytest.approx(3)
    assert rows["fastreg"]["gb_per_s"] == pytest.approx(3 * 1000 / 3e-6 / 1e9)
    assert rows["copy"]["gb_per_s"] == pytest.approx(2 * 1000 / 1e-6 / 1e9)
    assert rows["fastreg"]["of_copy"] == pytest.approx(0.5)


def test_rounds_alternate_the_order_and_walk_the_pools():
    calls = []
    workloads = {
        name: timing.Workload(lambda entry, name=name: calls.append((name, entry)), range(3)) for name in ("a", "b")
    }
    low, high = timing.ROUNDS
    samples = timing._rounds(workloads, {"a": 1, "b": 2}, CPU, seconds=0)
    assert {name: len(times) for name, times in samples.items()} == {"a": low, "b": low}
    assert calls[:6] == [("a", 0), ("b", 0), ("b", 1), ("b", 2), ("b", 0), ("a", 1)]
    assert low < high


@pytest.mark.parametrize("provider", [TORCH, FASTREG], ids=lambda provider: provider.name)
@pytest.mark.parametrize("case", [c for c in cases(quick=True) if c.direction != "evaluation"], ids=str)
def test_steps_do_what_the_case_says(case, provider):
    layout = timing.MEMORY_FORMATS[case.layout]
    inputs = [torch.randn(case.shape, dtype=case.dtype).contiguous(memory_format=layout) for _ in range(2)]
    workload = timing.layer_workload(case, provider, inputs)
    if case.direction != "forward":
        assert next(workload._next)[-1].is_contiguous(memory_format=layout)  # the gradient that comes in
    asked = []
    for x in inputs:
        x.register_hook(lambda gradient: asked.append(gradient.is_contiguous(memory_format=layout)))
    assert workload.seconds_per_call(4, CPU) > 0
    assert asked == ([] if case.direction == "forward" else [True] * 4)


def test_grad_mode_and_training_mode_of_what_is_timed(brief, monkeypatch):
    seen = set()

    class Spy(nn.BatchNorm1d):
        def forward(self, input):
            seen.add((self.training, torch.is_grad_enabled(), input.requires_grad))
            return super().forward(input)

    spies = [Provider(name, type("layers", (), {"BatchNorm1d": Spy})) for name in ("torch", "fastreg")]
    monkeypatch.setattr(timing, "providers", lambda op, device: spies)
    timing.measure(Case("batch_norm", "evaluation", (4, 3)), CPU, 0)
    assert seen == {(False, False, False)}
    seen.clear()
    timing.measure(Case("batch_norm", "forward", (4, 3)), CPU, 0)
    assert seen == {(True, True, True)}


def test_cudnn_is_a_peer_of_its_own_on_gpus_only():
    assert [p.name for p in providers("batch_norm", CPU)] == ["torch", "fastreg"]
    peers = {p.name: p for p in providers("batch_norm", torch.device("cuda"))}
    with peers["torch_without_cudnn"].settings():
        assert not torch.backends.cudnn.enabled
    with peers["torch"].settings():
        assert torch.backends.cudnn.enabled


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
    values = (1234.5, 123.45, 12.345, 1.2345, 0.012345)
    assert [results.significant(value) for value in values] == ["1,234", "123", "12.3", "1.23", "0.0123"]


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
    rows = list(timing.summarise(Case("dropout", "forward", (4,)), {n: [1.0] for n in ("copy", "torch", "fastreg")}))
    assert "!" not in timing.report(rows)
    assert "1.00 (1.00-1.00)!" in timing.report([row | {"contention": 0.5} for row in rows])


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc/stat")
def test_own_work_is_not_the_others(monkeypatch):
    monkeypatch.setattr(environment.os, "times", lambda: SimpleNamespace(user=0.0, system=0.0))
    everything = environment._seconds_of_others()
    monkeypatch.setattr(environment.os, "times", lambda: SimpleNamespace(user=40.0, system=30.0))
    assert everything - environment._seconds_of_others() == pytest.approx(70, abs=5)
    assert everything > 0


def test_speed_chart_compares_with_the_best_peer():
    case = Case("batch_norm", "forward", (2, 2))
    samples = {"copy": [1.0], "torch": [3.0], "torch_without_cudnn": [2.0], "fastreg": [4.0]}
    assert charts.best_ratios(list(timing.summarise(case, samples))) == {
        ("batch_norm", "forward", "2x2  fp32"): (0.5, 0.5, 0.5)
    }


# The command


def run_command(*arguments):
    try:
        return command.main(list(map(str, arguments)))
    except SystemExit as exit:
        return exit.code


@pytest.mark.parametrize(("part", "ends"), [("timings", ("json", "csv", "png")), ("training", ("json", "png"))])
def test_whole_run(part, ends, brief, tmp_path, capsys):
    assert run_command("--quick", "--only", part, "--device", "cpu", "--out", tmp_path / "new") == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {f"{part}.{end}" for end in ends}
    assert (tmp_path / "new" / f"{part}.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "new" / f"{part}.json").read_text())
    assert document["complete"] is True
    rows = document.get("rows") or document["runs"]
    assert {"torch", "fastreg"} <= {row.get("provider") or row["layers"] for row in rows}
    assert part in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "everything"], "argument --only: invalid choice: 'everything'"),
        (["--epochs", "0"], "argument --epochs: must be a whole number from 1, got 0"),
        (["--seeds", "-1"], "argument --seeds: must be a whole number from 1, got -1"),
        (["--threads", "two"], "argument --threads: must be a whole number from 1, got two"),
        (["--device", "tpu"], "--device must be auto, cpu, cuda or cuda:N, got tpu"),
        (["--device", "cuda:99"], "--device must name a device that is there, got cuda:99 (torch "),
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


def test_threads(brief, tmp_path):
    assert run_command("--quick", "--only", "timings", "--device", "cpu", "--threads", 2, "--out", tmp_path) == 0
    assert json.loads((tmp_path / "timings.json").read_text())["environment"]["threads"] == 2


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_what_was_measured_outlives_an_interruption(failure, tmp_path, monkeypatch, capsys):
    rows = list(timing.summarise(Case("dropout", "forward", (4,)), {n: [1.0] for n in ("copy", "torch", "fastreg")}))

    def run(*_):
        yield rows
        raise failure

    monkeypatch.setattr(timing, "run", run)
    if failure is KeyboardInterrupt:
        assert run_command("--device", "cpu", "--out", tmp_path) == 130
    else:
        with pytest.raises(RuntimeError):
            run_command("--device", "cpu", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"timings.partial.{end}" for end in ("json", "csv", "png")}
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
