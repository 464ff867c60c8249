"""`python -m bench.training`: its arguments, its files, interruption, every experiment in small."""

import json

import pytest
import torch

from bench.training import __main__ as command
from bench.training import experiments, loop
from bench.training.experiments import fashion, init_scale, search
from tests.bench.data_fixtures import no_data  # noqa: F401

EVERYTHING = [*experiments.EXPERIMENTS, *experiments.STUDIES]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other take long where the cores are shared, and the work here is tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small(monkeypatch, no_data):  # noqa: F811
    monkeypatch.setattr(search, "TRIALS", 3)
    monkeypatch.setattr(init_scale, "recipes", lambda features, every=init_scale.recipes: every(features, [1, 0.1]))
    monkeypatch.setitem(fashion.PASSES, "digits", 1)


def run_command(*arguments):
    try:
        return command.main(["--device", "cpu", *map(str, arguments)])
    except SystemExit as exit:
        return exit.code


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_experiment(name, tmp_path, capsys):
    base, _, study = name.partition("fashion-dropout-")
    arguments = ["fashion-dropout", "--study", study] if study else [base]
    assert run_command(*arguments, "--epochs", 2, "--seeds", 2, "--out", tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.json", f"{name}.png"}
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / f"{name}.json").read_text())
    assert document["complete"] is True and document["experiment"] == name
    assert {run["layers"] for run in document["runs"]} - {loop.EITHER} == {"torch", "fastreg"}
    wanted = {"digits": None, "fashion": "fashion-mnist"}.get(name.split("-")[0], "mnist")
    assert (document["data"]["name"], document["data"]["stands_in_for"]) == ("digits", wanted)
    output = capsys.readouterr().out
    assert ("in place of" in output) == (wanted is not None)
    assert ("88.1% from scratch, 87.3% concise" in output) == (name == "fashion-dropout")
    assert ("answer" in document) == name.startswith("fashion")
    assert document.get("answer", "") in output


@pytest.mark.parametrize("layers", loop.PROVIDERS)
def test_whose_layers(layers, tmp_path):
    assert run_command("digits-dropout", "--layers", layers, "--epochs", 1, "--seeds", 1, "--out", tmp_path) == 0
    (run,) = json.loads((tmp_path / "digits-dropout.json").read_text())["runs"]
    assert run["layers"] == layers


def test_several_and_all(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(command.experiments, "part", lambda name, choice: ran.append(name))
    for names in (["overfit", "search", "overfit"], ["all"], ["fashion-dropout", "--study", "all"]):
        command.parse([*names, "--device", "cpu", "--out", str(tmp_path)])
    assert ran == ["overfit", "search", *EVERYTHING]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: NAME"),
        (["everything"], "argument NAME: invalid choice: 'everything' (choose from "),
        (["search", "--layers", "jax"], "argument --layers: invalid choice: 'jax'"),
        (["search", "--seeds", "0"], "argument --seeds: must be a whole number from 1, got 0"),
        (["search", "--epochs", "-3"], "argument --epochs: must be a whole number from 1, got -3"),
        (["search", "--study", "wider"], "--study goes with fashion-dropout alone, got search"),
        (["fashion-dropout", "--study", "deeper"], "argument --study: invalid choice: 'deeper'"),
        (["search", "--device", "tpu"], "--device must be auto, cpu, cuda or cuda:N, got tpu"),
        (["search", "--data", "/nowhere"], "--data must be a folder with train-images-idx3-ubyte[.gz], train-labels"),
    ],
)
def test_bad_arguments_end_it_before_any_work(arguments, message, tmp_path, capsys):
    assert run_command("--out", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    if "invalid choice: 'everything'" in message:
        assert all(name in error for name in [*experiments.EXPERIMENTS, "all"])
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "folder", "/proc"):
        assert run_command("search", "--out", out) == 2
        assert f"--out must be a folder that can be written, got {out}" in capsys.readouterr().err


def test_ctrl_c_keeps_what_there_is(tmp_path, monkeypatch, capsys):
    epoch, done = loop.Learner.epoch, []

    def interrupted(*arguments):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return epoch(*arguments)

    arguments = ["digits-dropout", "overfit", "--epochs", 4, "--seeds", 1, "--out", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(loop.Learner, "epoch", interrupted)
        assert run_command(*arguments) == 130
    assert {path.name for path in tmp_path.iterdir()} == {f"digits-dropout.partial.{end}" for end in ("json", "png")}
    document = json.loads((tmp_path / "digits-dropout.partial.json").read_text())
    assert document["complete"] is False
    assert {run["layers"]: len(run["test_loss"]) for run in document["runs"]} == {"torch": 2, "fastreg": 2}
    assert "(partial: interrupted)" in capsys.readouterr().out
    assert run_command(*arguments) == 0
    assert not list(tmp_path.glob("*partial*"))
