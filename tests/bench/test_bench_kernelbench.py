"""KernelBench's problems: their sizes, what is fused of them, and that all variants compute the same."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import fastreg
from bench import __main__ as command
from bench.end_to_end import run
from bench.end_to_end.kernelbench import PROBLEMS, Problem, problems
from bench.end_to_end.step import VARIANTS, Step, Variant
from tests.bench.bench_fixtures import CPU, brief, one_thread, run_command  # noqa: F401

# Of one sample, by the convolutions' and poolings' arithmetic.
OUTPUTS = {
    "1-33": (64, 512, 512),
    "2-11": (128, 17, 17),
    "2-15": (32, 31, 63, 63),
    "2-33": (8192,),
    "2-39": (4096,),
    "2-41": (4096,),
    "2-52": (128, 126, 126),
    "2-66": (16384,),
    "2-72": (16, 15, 15, 15),
    "2-73": (64, 126, 126),
    "2-77": (128, 1, 1, 1),
    "2-83": (16, 14, 62, 62),
    "2-84": (8192,),
    "2-97": (8192,),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_sizes(name):
    problem: Problem = PROBLEMS[name]
    batch, *sizes = problem.full
    with torch.device("meta"):
        model = problem.build(sizes[0])
        assert model(torch.empty(batch, *sizes)).shape == (batch, *OUTPUTS[name])
    kinds = (nn.modules.batchnorm._BatchNorm, nn.Dropout)
    assert any(isinstance(module, kinds) for module in model.modules())
    assert len(problem.small) == len(problem.full) and problem.small != problem.full


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "plain"])
@pytest.mark.parametrize("name", ["2-33", "2-41", "2-52", "2-84", "2-97", "1-33"])
def test_variants_compute_the_same(name, variant, brief):  # noqa: F811
    torch.manual_seed(0)
    (network,) = (each for each in problems(CPU) if each.name == name)
    smaller = (8, *network.input) if len(network.input) == 1 else (2, network.input[0], 12, 12)
    initial, parameters = network.build(), []
    for chosen in ("plain", variant):
        step = Step(network, copy.deepcopy(initial), VARIANTS[chosen], CPU, lambda model: model)
        step.x = torch.randn(smaller, generator=torch.Generator().manual_seed(1))
        for _ in range(2):
            step()
        parameters.append(nn.utils.parameters_to_vector(step.model.parameters()))
    torch.testing.assert_close(*parameters, rtol=1e-3, atol=1e-4)


def test_what_is_fused():
    assert "1 batch norm + gelu + relu" in _report("2-41") or "1 batch norm + gelu" in _report("2-41")
    assert "batch norm + tanh" in _report("2-11")


def _report(name):
    return str(fastreg.report(fastreg.convert(PROBLEMS[name].build(64))))


def test_patched_code_takes_turns_with_plain_alone():
    variants = {"plain": Variant(), "compiled": Variant(compiled=True), "patched": Variant(patched=True)}
    assert [list(group) for group in run.together(variants)] == [["plain", "compiled"], ["plain", "patched"]]
    assert [list(group) for group in run.together({"plain": Variant()})] == [["plain"]]


def test_command(brief, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(run, "ROUNDS", (2, 2))
    monkeypatch.setattr(run, "WARM_UP", 1)
    arguments = ("--only", "kernelbench", "--quick", "--device", "cpu", "--out", tmp_path)
    assert run_command(command.main, *arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"kernelbench.{end}" for end in ("json", "csv", "png")}
    rows = json.loads((tmp_path / "kernelbench.json").read_text())["rows"]
    assert [(row["network"], row["variant"]) for row in rows] == [(n, v) for n in ("2-33", "2-66") for v in VARIANTS]
    for network in problems(CPU):
        assert pickle.loads(pickle.dumps(network)).describe() == network.describe()
