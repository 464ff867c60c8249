"""Whole networks: the variants train alike, what a step's time goes to, the files. No test asserts a time."""

import copy
import functools
import json

import pytest
import torch
from torch import nn

import fastreg
from bench import __main__ as command
from bench.end_to_end import distributed, networks, report, run
from bench.end_to_end.networks import Network
from bench.end_to_end.residual import residual_network
from bench.end_to_end.shares import SHARES, by_kind, shares
from bench.end_to_end.step import VARIANTS, Step
from tests.bench.bench_fixtures import CPU, brief, one_thread, run_command  # noqa: F401

TINY = networks.networks(CPU, quick=True)
MLP = Network("mlp", "bench", functools.partial(networks.mlp, 8, 6), 4, (6,), 10)
FILES = {"end-to-end.json", "end-to-end.csv", "end-to-end.png"}


@pytest.fixture
def few_rounds(brief, monkeypatch):  # noqa: F811
    monkeypatch.setattr(run, "ROUNDS", (2, 2))
    monkeypatch.setattr(run, "WARM_UP", 1)


def make(network, variant, model=None):
    torch.manual_seed(0)
    return Step(network, model or network.build(), VARIANTS[variant], CPU, lambda model: model)


def test_residual_network_is_resnet50():
    model = residual_network()
    assert sum(p.numel() for p in model.parameters()) == 25_557_032  # as torchvision's and the paper's
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 53
    with torch.device("meta"):
        assert residual_network()(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    converted = str(fastreg.report(fastreg.convert(model)))
    assert "33 batch norm + relu" in converted and "16 batch norm + add + relu" in converted


@pytest.mark.parametrize("network", TINY, ids=lambda network: network.name)
def test_variants_train_alike(network, brief):  # noqa: F811
    """Dropout draws its masks in its own way, so it is switched off."""
    torch.manual_seed(0)
    model = network.build()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    parameters = {}
    for variant in VARIANTS:
        step = make(network, variant, copy.deepcopy(model))
        for _ in range(3):
            step()
        parameters[variant] = nn.utils.parameters_to_vector(step.model.parameters())
        assert all(parameter.grad is None for parameter in step.model.parameters())
        converted = any(type(module).__module__.startswith("fastreg") for module in step.model.modules())
        assert converted == VARIANTS[variant].converted
    for variant, values in parameters.items():
        torch.testing.assert_close(values, parameters["plain"], rtol=1e-3, atol=1e-4, msg=variant)


def test_by_kind():
    own = [("aten::mkldnn_convolution", 5.0), ("AddmmBackward0", 1.0), ("aten::native_batch_norm", 2.0)]
    own += [("fastreg::batch_norm_train", 3.0), ("aten::threshold_backward", 1.0), ("aten::add_", 1.0)]
    own += [("aten::addmm", 1.0), ("aten::_log_softmax", 4.0), ("NativeBatchNormBackward0", 1.0), ("aten::copy_", 1.0)]
    assert by_kind(own) == {"share_products": 7.0, "share_layers": 8.0, "share_rest": 5.0}


@pytest.mark.parametrize("variant", ["plain", "converted"])
def test_shares_are_of_the_whole_step(variant):
    found = shares(make(TINY[0], variant))
    assert tuple(found) == SHARES
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) > 0


def test_speed_up_is_paired_by_round():
    samples = {"plain": [2.0, 9.0, 3.0], "converted": [1.0, 3.0, 1.0]}
    columns = {name: {"peak_bytes": 7} for name in samples}
    plain, converted = run.summarise(MLP, 2, samples, columns)
    assert (plain["speed_up"], converted["speed_up"], converted["steps_per_s"]) == (1, 3, 1)
    assert (converted["variant"], converted["devices"], converted["peak_bytes"]) == ("converted", 2, 7)


def test_command(few_rounds, tmp_path, monkeypatch, capsys):
    arguments = ("--only", "end-to-end", "--quick", "--device", "cpu", "--out", tmp_path)
    assert run_command(command.main, *arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES
    rows = json.loads((tmp_path / "end-to-end.json").read_text())["rows"]
    assert [(row["network"], row["variant"]) for row in rows] == [(n.name, v) for n in TINY for v in VARIANTS]
    for row in rows:
        assert row["peak_bytes"] > 0 and row["rounds"] == 2
        assert (row["share_layers"] is None) == ("compiled" in row["variant"])
    assert report.title(rows[0]) == "resnet50 (bench, tiny), 2x3x32x32, float32"
    assert "resnet50 (bench, tiny), 2x3x32x32, float32  converted, compiled" in capsys.readouterr().out
    chosen = ("--networks", "mlp", "--variants", "converted")
    assert run_command(command.main, *arguments[:-1], tmp_path / "chosen", *chosen) == 0
    some = json.loads((tmp_path / "chosen/end-to-end.json").read_text())["rows"]
    assert [(row["network"], row["variant"]) for row in some] == [("mlp", "plain"), ("mlp", "converted")]
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("measured again"))
    assert run_command(command.main, *arguments, "--resume") == 0
    assert json.loads((tmp_path / "end-to-end.json").read_text())["rows"] == rows


def work(device, wrap):
    """Of each of the processes: whether its gradients are the mean of all processes' gradients."""
    torch.manual_seed(torch.distributed.get_rank())
    model = wrap(nn.Linear(1, 1, bias=False))
    rank = torch.distributed.get_rank()
    (model(torch.full((1, 1), 1.0 + rank)).sum()).backward()
    return torch.distributed.get_world_size(), model.module.weight.grad.item(), fastreg.__version__


def test_distributed():
    assert distributed.run(work, "cpu", 2) == (2, 1.5, fastreg.__version__)


def fail(device, wrap):
    raise ValueError("of a process")


def test_a_process_that_fails_fails_all():
    # The other one may notice first that it is gone.
    with pytest.raises(Exception, match="ValueError: of a process|Connection closed by peer"):
        distributed.run(fail, "cpu", 2)


def test_networks_can_be_sent_to_processes():
    import pickle

    for device in (CPU, torch.device("cuda")):
        for network in networks.networks(device):
            assert pickle.loads(pickle.dumps(network)).describe() == network.describe()
