"""fastreg.nn.BatchNormAct1d/2d/3d, ActDropout and BiasActDropoutAdd."""

import copy
import pickle

import pytest
import torch

import fastreg
from fastreg.functional import Activation

KINDS = [
    (fastreg.nn.BatchNormAct1d, torch.nn.BatchNorm1d, (8, 4)),
    (fastreg.nn.BatchNormAct2d, torch.nn.BatchNorm2d, (3, 4, 5, 2)),
    (fastreg.nn.BatchNormAct3d, torch.nn.BatchNorm3d, (3, 4, 5, 2, 2)),
]
SETTINGS = [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"dtype": torch.float64}]


@pytest.mark.parametrize("ours, torchs, shape", KINDS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_is_the_layers_in_one(ours, torchs, shape, settings):
    module, plain = ours(4, act="relu", pre_act="tanh", **settings), torchs(4, **settings)
    assert not isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    assert list(module.state_dict()) == list(plain.state_dict())
    module.load_state_dict(plain.state_dict())
    for training in (True, True, False):
        x, residual = torch.randn(2, *shape, dtype=settings.get("dtype"))
        module.train(training), plain.train(training)
        torch.testing.assert_close(module(x, residual), (plain(x.tanh()) + residual).relu())
        torch.testing.assert_close(module(x), plain(x.tanh()).relu())
    torch.testing.assert_close(module.state_dict(), plain.state_dict())


@pytest.mark.parametrize("act", ["relu", "gelu", None])
def test_a_call_asks_no_module_for_what_it_lacks(act, monkeypatch):
    """The search ends in an exception, which takes as long as a small layer."""
    module, lacking = fastreg.nn.BatchNormAct1d(4, act=act), []

    def search(self, name, search=torch.nn.Module.__getattr__):
        try:
            return search(self, name)
        except AttributeError:
            lacking.append(name)
            raise

    monkeypatch.setattr(torch.nn.Module, "__getattr__", search)
    module(torch.randn(8, 4))
    assert lacking == []


def test_bias_of_batch_norm():
    module = fastreg.nn.BatchNormAct1d(4, bias=False)
    assert list(module.state_dict()) == ["weight", "running_mean", "running_var", "num_batches_tracked"]
    assert module(torch.randn(8, 4)).shape == (8, 4)


def test_learned_slope():
    module = fastreg.nn.BatchNormAct2d(4, act=torch.nn.PReLU(4), pre_act="prelu")
    assert list(module.state_dict())[-2:] == ["act.weight", "pre_act.weight"]
    module(torch.randn(3, 4, 2, 2)).sum().backward()
    assert module.act.weight.grad.shape == (4,) and module.pre_act.weight.grad.shape == (1,)


@pytest.mark.parametrize("act", ["gelu_tanh", ("elu", 0.5), Activation("leaky_relu", 0.3), torch.nn.Mish(), None])
def test_activations(act):
    torchs = {"gelu_tanh": torch.nn.GELU("tanh"), ("elu", 0.5): torch.nn.ELU(0.5), None: torch.nn.Identity()}
    torchs[Activation("leaky_relu", 0.3)] = torch.nn.LeakyReLU(0.3)
    x = torch.randn(8, 4)
    expected = torchs.get(act, act)(torch.nn.BatchNorm1d(4)(x))
    torch.testing.assert_close(fastreg.nn.BatchNormAct1d(4, act=act)(x), expected)


def test_dropout_follows_training():
    module = fastreg.nn.BatchNormAct1d(4, act=None, drop=0.5)
    x = torch.randn(100, 4)
    assert (module(x) == 0).any() and not (module.eval()(x) == 0).any()
    module = fastreg.nn.ActDropout("relu", 0.5)
    x = x.abs() + 1
    assert (module(x) == 0).any() and torch.equal(module.eval()(x), x)


def test_bias_act_dropout_add():
    module = fastreg.nn.BiasActDropoutAdd(4, "gelu", p=0.0)
    assert list(module.state_dict()) == ["bias"]
    torch.nn.init.normal_(module.bias)
    x, residual = torch.randn(2, 8, 4)
    torch.testing.assert_close(module(x, residual), torch.nn.functional.gelu(x + module.bias) + residual)
    torch.manual_seed(0)
    rows = fastreg.nn.ActDropout(None, 0.5, drop_path=True)(torch.ones(50, 4), torch.ones(50, 4))
    assert {tuple(row) for row in rows.tolist()} == {(1.0,) * 4, (3.0,) * 4}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies(copied):
    module = fastreg.nn.BatchNormAct2d(4, act="prelu", drop=0.2).eval()
    assert repr(copied(module)) == repr(module) and not copied(module).training


def test_symbolic_trace_keeps_the_modules():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = fastreg.nn.BatchNormAct1d(4), fastreg.nn.BiasActDropoutAdd(4)

        def forward(self, x):
            return self.drop(self.norm(x, x), x)

    traced = torch.fx.symbolic_trace(Block().eval())
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    assert traced(torch.randn(3, 4)).shape == (3, 4)


def test_what_is_refused():
    known = "identity, relu, relu6, leaky_relu, prelu, elu, silu, mish, gelu, gelu_tanh"
    with pytest.raises(ValueError, match=f"BatchNormAct2d: act must be one of {known}.*, got 'swish'"):
        fastreg.nn.BatchNormAct2d(4, act="swish")
    with pytest.raises(ValueError, match="ActDropout: act must be one of Identity, ReLU.*Tanh, got SELU"):
        fastreg.nn.ActDropout(torch.nn.SELU())
    with pytest.raises(ValueError, match=r"BatchNormAct1d: drop must lie in \[0, 1\], got -1"):
        fastreg.nn.BatchNormAct1d(4, drop=-1)
    with pytest.raises(ValueError, match=r"ActDropout: p must lie in \[0, 1\], got nan"):
        fastreg.nn.ActDropout(p=float("nan"))
    module = fastreg.nn.BatchNormAct2d(4)
    with pytest.raises(ValueError, match="BatchNormAct2d: input must have 4 dimensions, got 2"):
        module(torch.randn(3, 4))
    with pytest.raises(ValueError, match="residual must have the input's shape"):
        module(torch.randn(3, 4, 2, 2), torch.randn(4, 1, 1))
    assert module.num_batches_tracked == 0


@pytest.mark.parametrize("name", ["act", "pre_act"])
def test_an_activation_that_was_replaced_by_an_unknown_module(name):
    module = fastreg.nn.BatchNormAct1d(4)
    setattr(module, name, torch.nn.Softplus())
    with pytest.raises(ValueError, match=f"BatchNormAct1d: {name} must be one of Identity, ReLU.*, got Softplus"):
        module(torch.randn(8, 4))
    assert module.num_batches_tracked == 0
