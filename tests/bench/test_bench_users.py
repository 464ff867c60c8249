"""Networks of users: the variants compute alike, the files, the command. No test asserts a time."""

import copy
import json

import pytest
import torch
from torch import nn

import fastreg
from bench import __main__ as command
from bench import compare
from bench.users import networks, run
from bench.users.report import report
from tests.bench.bench_fixtures import CPU, brief, one_thread, run_command  # noqa: F401

OWN = [network for network in networks.networks(4) if network.source == "bench"]
SITES = {
    "mlp": 3,
    "mlp_bn": 3,
    "conv": 5,
    "residual": 17,
    "mobile_relu6": 20,
    "mobile_silu": 20,
    "mobile_hardswish": 20,
}
SITES |= {"transformer": 6, "unet": 10, "graph": 6}


@pytest.mark.parametrize("network", OWN, ids=lambda network: network.name)
def test_variants_compute_alike(network):
    """Dropout draws its masks in its own way, so it is switched off."""
    torch.manual_seed(0)
    model = network.build()
    assert len(fastreg.report(fastreg.convert(copy.deepcopy(model))).fused) == SITES[network.name]
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.MultiheadAttention):
            setattr(module, "p" if isinstance(module, nn.Dropout) else "dropout", 0.0)
    for mode in run.MODES:
        found = {}
        for name, variant in run.VARIANTS.items():
            torch.manual_seed(1)
            program = run.Program(network, copy.deepcopy(model).double(), variant, mode, CPU)
            program.step.x = program.step.x.double()
            program.call()
            assert program.step.model.training == (mode == "training")
            converted = any(type(module).__module__.startswith("fastreg") for module in program.step.model.modules())
            assert converted == variant.converted
            parameters = nn.utils.parameters_to_vector(program.step.model.parameters())
            found[name] = torch.cat([parameters, *(b.double().flatten() for b in program.step.model.buffers())])
        for name in found:
            torch.testing.assert_close(found[name], found["torch"], rtol=1e-9, atol=1e-9, msg=f"{mode} {name}")


def test_command(brief, tmp_path, monkeypatch, capsys):  # noqa: F811
    arguments = ("--only", "users", "--quick", "--device", "cpu", "--out", tmp_path)
    chosen = ("--networks", "mlp", "graph")
    assert run_command(command.main, *arguments, *chosen) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"users.json", "users.csv"}
    rows = json.loads((tmp_path / "users.json").read_text())["rows"]
    cases = [(op, mode) for op in ("mlp", "graph") for mode in run.MODES]
    assert [(row["op"], row["mode"], row["provider"]) for row in rows] == [(*c, v) for c in cases for v in run.VARIANTS]
    assert all(row["us"] > 0 and row["ratio"] > 0 for row in rows)
    assert [row["sites"] for row in rows[:: len(run.VARIANTS)]] == [
        3,
        0,
        6,
        6,
    ]  # a dropout alone does nothing in evaluation
    assert "times plain" in capsys.readouterr().out
    path = tmp_path / "users.json"
    assert "no change in" in compare.compare_files(path, path).report()
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("measured again"))
    assert run_command(command.main, *arguments, *chosen, "--resume") == 0
    assert json.loads(path.read_text())["rows"] == rows


def test_slower_networks_fail_the_command(brief, tmp_path, monkeypatch, capsys):  # noqa: F811
    samples = {"torch": [1.0, 1.0], "fastreg": [1.2, 1.2], "unfused": [1.5, 1.5], "patched": [1.5, 1.5]}
    monkeypatch.setattr(run, "measure", lambda *_: samples)
    arguments = ("--only", "users", "--quick", "--device", "cpu", "--out", tmp_path, "--networks", "mlp")
    assert run_command(command.main, *arguments, "--fail-if-slower", 1.3) == 0
    assert run_command(command.main, *arguments, "--fail-if-slower", 1.1) == 1
    assert "slower: mlp training 4x64 float32 contiguous: 1.20 times the time of torch" in capsys.readouterr().err


def test_report():
    rows = [
        row | {"contention": 0.5}
        for row in run.summarise(
            OWN[0], "training", {"torch": [3.0], "fastreg": [2.0], "unfused": [4.0], "patched": [6.0]}
        )
    ]
    assert "1.50 (1.50-1.50)!" in report(rows) and report(rows).endswith("0.75     0.50")
