"""--compare and --fail-if-slower: on synthetic timings, and on a provider that is slowed down in earnest."""

import json
import random
import time

import pytest

from bench import __main__ as command
from bench import compare, results
from bench.timings import run
from bench.timings.cases import Case, key
from bench.timings.providers import FASTREG, TORCH, Provider
from tests.bench.bench_fixtures import CPU, brief, one_thread, rows_of, run_command  # noqa: F401

ENVIRONMENT = {"device": "abacus", "backend": "cpu", "torch": "2.0", "threads": 2, "fastreg_code": "1"}
CASES = [
    Case(op, mode, (size,))
    for op in ("dropout", "relu_dropout")
    for mode in ("forward", "both")
    for size in range(1, 11)
]


def timings(seed, noise=0.02, outlier=0.0, slower=None, everything=1.0):
    """Rows of all cases as a run gives them: rounds that scatter, and some cases that another program held up.

    slower: factors by provider. everything: of the whole machine."""
    source = random.Random(seed)
    rows = []
    for case in CASES:
        held_up = everything * (1 + (0.5 if source.random() < outlier else 0))
        seconds = {
            name: [
                case.shape[0] * held_up * (slower or {}).get(name, 1.0) * source.lognormvariate(0, noise)
                for _ in range(9)
            ]
            for name in ("copy", "torch", "fastreg")
        }
        rows += rows_of(case, **seconds)
    return rows


def changed(before, after):
    return [
        (change.provider, change.slower)
        for change in compare.compare(before, after).changes
        if change.slower or change.faster
    ]


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_the_same_code_does_not_change(noise, seed):
    before, after = (timings(seed=2 * seed + i, noise=noise, outlier=0.1) for i in range(2))
    assert changed(before, after) == []
    assert changed(before, timings(2 * seed + 1, noise, outlier=0.1, everything=1.4)) == []  # another clock
    assert "no change in 80 timings of 40 cases" in compare.compare(before, after).report()


@pytest.mark.parametrize("provider", ["torch", "fastreg"])
@pytest.mark.parametrize("factor", [1.25, 0.8])
def test_a_change_everywhere_is_found(provider, factor):
    found = changed(timings(1), timings(2, slower={provider: factor}))
    assert len(found) >= 0.95 * len(CASES) and set(found) == {(provider, factor > 1)}


def test_a_change_of_one_case_is_found():
    before, after = timings(1), timings(2)
    for row in after:
        if key(row) == CASES[7].key and row["provider"] == "fastreg":
            for column in ("us_20", "us", "us_80"):
                row[column] *= 1.3
    (change,) = [change for change in compare.compare(before, after).changes if change.slower or change.faster]
    assert (change.case, change.provider) == (CASES[7].key, "fastreg")
    assert change.factor == pytest.approx(1.3, rel=0.05)
    report = compare.compare(before, after).report()
    assert "slower" in report and "1 slower, 0 faster in 80 timings of 40 cases" in report


def test_noise_hides_what_is_smaller_than_it():
    assert changed(timings(1, noise=0.3), timings(2, noise=0.3, slower={"fastreg": 1.1})) == []


def test_without_peers_the_copy_tells_what_is_common():
    before, after = (
        [row for row in timings(seed, slower={"fastreg": factor}, everything=everything) if row["provider"] != "torch"]
        for seed, factor, everything in ((1, 1, 1), (2, 1.5, 1.4))
    )
    assert set(changed(before, after)) == {("fastreg", True)}
    changes = compare.compare(before, after).changes
    assert [change.factor for change in changes] == pytest.approx([1.5] * len(changes), rel=0.1)


def test_disturbed_cases_are_not_compared(tmp_path):
    before, after = timings(1), timings(2, slower={"fastreg": 2.0})
    for row in after[:30]:
        row["contention"] = 0.5
    comparison = compare.compare(before, after)
    assert comparison.disturbed == 10 and len(comparison.changes) == 2 * (len(CASES) - 10)
    assert "disturbed by other programs, and not compared: 10 cases" in comparison.report()
    files = [write(tmp_path, str(i), [row | {"contention": 0.5} for row in rows_of()]) for i in range(2)]
    with pytest.raises(ValueError, match="a case in common, got none that no other program disturbed"):
        compare.compare_files(*files)


def test_cases_of_one_file_alone_are_counted():
    comparison = compare.compare(timings(1)[:30], timings(2)[6:])
    assert comparison.only == (2, 30)
    assert "in the first file alone: 2 cases; in the second file alone: 30 cases" in comparison.report()


def test_a_provider_that_is_slowed_down_is_reported(brief, tmp_path, monkeypatch, capsys):  # noqa: F811
    """In earnest: the same layer, but that it sleeps."""
    monkeypatch.setattr(run, "ROUNDS", (9, 9))

    def sleepy(case):
        layer = FASTREG.layer(case)
        layer.register_forward_pre_hook(lambda *_: time.sleep(0.02))
        return layer

    case = Case("dropout", "forward", (1000,))
    for name, layer in (("before", FASTREG.layer), ("after", sleepy)):
        job = run.Job([case], [TORCH, Provider("fastreg", layer)], CPU)
        rows = [row for rows in job.run() for row in rows]
        results.write_results(tmp_path, name, ENVIRONMENT, rows, complete=True)
    files = tmp_path / "before.json", tmp_path / "after.json"
    assert run_command(command.main, "--compare", *files) == 0
    output = capsys.readouterr().out
    assert "dropout  forward  1000   float32  contiguous  fastreg" in output and "x slower" in output
    assert run_command(command.main, "--compare", *files, "--fail-if-slower", 2) == 1
    assert "slower: dropout forward 1000 float32 contiguous: " in capsys.readouterr().err
    assert run_command(command.main, "--compare", *files, "--fail-if-slower", 1e9) == 0
    assert run_command(command.main, "--compare", *reversed(files), "--fail-if-slower", 2) == 0


def write(folder, name, rows, **environment):
    results.write_results(folder, name, ENVIRONMENT | environment, rows, complete=True)
    return folder / f"{name}.json"


def test_files_that_cannot_be_compared(tmp_path, capsys):
    good = write(tmp_path, "good", rows_of())
    (tmp_path / "damaged.json").write_text('{"rows": [')
    (tmp_path / "other.json").write_text(json.dumps({"runs": []}))
    for wrong, message in [
        (
            write(tmp_path, "gpu", rows_of(), device="H200"),
            "must have files of one device and version, got device abacus and H200",
        ),
        (write(tmp_path, "new", rows_of(), torch="2.1", threads=1), "got threads 2 and 1, torch 2.0 and 2.1"),
        (write(tmp_path, "empty", []), "must have files with a case in common, got none"),
        (write(tmp_path, "steps", [{"network": "mlp"}]), f"must have files of timings, got {tmp_path / 'steps.json'}"),
        (tmp_path / "damaged.json", f"must be a JSON file of results, got {tmp_path / 'damaged.json'}"),
        (tmp_path / "other.json", "must be a JSON file of results"),
        (tmp_path / "none.json", "No such file"),
    ]:
        assert run_command(command.main, "--compare", good, wrong) == 2
        assert message in capsys.readouterr().err
    assert run_command(command.main, "--compare", good, write(tmp_path, "later", rows_of(), fastreg_code="2")) == 0


def test_slower_than_others():
    rows = rows_of(torch=[0.9, 0.8, 0.7], fastreg=[1.0, 1.0, 1.0], copy=[1.0] * 3)
    assert compare.slower_than_others(rows, 1.05) == [
        "dropout forward 4 float32 contiguous: 1.25 times the time of torch"
    ]
    assert compare.slower_than_others(rows, 1.3) == []
    assert (
        compare.slower_than_others(rows_of(torch=[0.5, 0.9, 1.2], fastreg=[1.0] * 3, copy=[1.0] * 3), 1.0) == []
    )  # noise
    assert compare.slower_than_others(rows_of(torch=[2.0]), 1.0) == []
