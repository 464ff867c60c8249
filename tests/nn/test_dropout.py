"""fastreg.nn's dropouts in place of torch.nn's, and those that torch.nn lacks."""

import copy
import inspect
import math
import pickle
import warnings

import pytest
import torch

import fastreg
from fastreg import nn

DROPOUTS = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"]
SCALED = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "DropPath"]
SHAPES = {"Dropout1d": (40, 50, 2), "Dropout3d": (40, 50, 2, 1, 2), "DropPath": (200, 2)}
FUNCTIONS = {
    "Dropout": "dropout",
    "Dropout1d": "dropout1d",
    "Dropout2d": "dropout2d",
    "Dropout3d": "dropout3d",
    "AlphaDropout": "alpha_dropout",
    "FeatureAlphaDropout": "feature_alpha_dropout",
    "DropPath": "drop_path",
}
dropouts = pytest.mark.parametrize("name", DROPOUTS)
own = pytest.mark.parametrize("name", FUNCTIONS)


def ones(name):
    return torch.ones(SHAPES.get(name, (40, 50, 2, 2)))


@dropouts
def test_is_torchs(name):
    ours, torchs = getattr(nn, name), getattr(torch.nn, name)
    assert issubclass(ours, torchs) and ours.__name__ == torchs.__name__
    parameters = list(inspect.signature(ours).parameters.values())
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(inspect.signature(torchs).parameters.values())
    assert [p.name for p in parameters[len(positional) :]] == [*(["scaling"] if name in SCALED else []), "generator"]
    for arguments in ({}, {"p": 0.2}, {"inplace": True}, {"p": 1, "inplace": True}):
        one, other = ours(**arguments), torchs(**arguments)
        assert repr(one) == repr(other) and one.__dict__.keys() == other.__dict__.keys()
        assert one.state_dict() == other.state_dict() == {}


@own
@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_p_is_refused(name, p):
    with pytest.raises(ValueError, match=rf"{name}: p must lie in \[0, 1\], got"):
        getattr(nn, name)(p)


@own
def test_forward(name):
    x = ones(name)
    module = getattr(nn, name)(0.3)
    function = getattr(fastreg.functional, FUNCTIONS[name])
    torch.manual_seed(0)
    y = module(x)
    torch.manual_seed(0)
    assert torch.equal(y, function(x, 0.3, True)) and not torch.equal(y, x)
    assert module.eval()(x) is x
    module.train()
    module.p = 0.0
    assert module(x) is x
    module.p, module.inplace = 0.5, True
    assert module(x) is x and (x != 1).any()


@pytest.mark.parametrize("name", SCALED)
def test_scaling(name):
    x = ones(name)
    module = getattr(nn, name)(0.25, scaling="test")
    assert repr(module) == f"{name}(p=0.25, inplace=False, scaling='test')"
    assert torch.equal(module(x).unique(), torch.tensor([0.0, 1.0]))
    assert torch.equal(pickle.loads(pickle.dumps(module.eval()))(x), x * 0.75)
    with pytest.raises(ValueError, match=f"{name}: scaling must be 'train' or 'test', got 'no'"):
        getattr(nn, name)(scaling="no")


@own
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies(name, copied):
    kind = getattr(nn, name)
    module = copied(kind(0.3, True).eval())
    assert type(module) is kind and (module.p, module.inplace, module.training) == (0.3, True, False)


@dropouts
def test_torchs_module_becomes_ours(name):
    """By its class alone: nothing that an instance of torch's lacks is needed."""
    module = getattr(torch.nn, name)(0.3)
    module.__class__ = getattr(nn, name)
    x = ones(name)
    assert not torch.equal(module(x), x) and module.eval()(x) is x and repr(module).startswith(f"{name}(p=0.3")


@own
def test_symbolic_trace_keeps_the_module(name):
    """As with torch's layers, the traced model still follows train() and eval()."""
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Identity(), getattr(nn, name)(0.5)))
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    x = ones(name)
    assert not torch.equal(traced(x), x) and torch.equal(traced.eval()(x), x)


def test_symbolic_trace_of_the_function():
    traced = torch.fx.symbolic_trace(lambda x: fastreg.functional.dropout(x, 0.5))
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets == [fastreg.functional.dropout] and (traced(torch.ones(100)) == 0).any()


def test_warnings_are_shown_once_and_name_the_function():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nn.Dropout2d()(torch.ones(2, 3, 4))
    assert ["dropout2d: a 3-D input" in str(w.message) for w in caught] == [True]


# ---- what torch.nn lacks


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.drop_path = nn.DropPath(0.5)

    def forward(self, x):
        return self.drop_path(x.sin(), x)


def test_drop_path_adds_the_residual():
    block, x = Block(), torch.rand(100, 3) + 1
    torch.manual_seed(0)
    y = block(x)
    torch.manual_seed(0)
    torch.testing.assert_close(y, x + fastreg.functional.drop_path(x.sin()))
    assert torch.equal(block.eval()(x), x + x.sin())
    traced = torch.fx.symbolic_trace(Block())
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_method", "call_module", "output"]
    torch.manual_seed(0)
    assert torch.equal(traced(x), y) and torch.equal(traced.eval()(x), x + x.sin())


def test_drop_connect_is_a_linear_layer():
    layer = nn.DropConnectLinear(30, 20, p=0.4)
    plain = torch.nn.Linear(30, 20)
    assert isinstance(layer, torch.nn.Linear) and layer.state_dict().keys() == plain.state_dict().keys()
    assert repr(layer) == "DropConnectLinear(in_features=30, out_features=20, bias=True, p=0.4)"
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(8, 30)
    assert torch.equal(layer.eval()(x), plain(x))
    assert nn.DropConnectLinear(3, 4, False, "meta", torch.float16).weight.dtype == torch.float16
    with pytest.raises(ValueError, match=r"DropConnectLinear: p must lie in \[0, 1\], got 2"):
        nn.DropConnectLinear(3, 4, p=2)


def test_drop_connect_drops_weights():
    layer, x = nn.DropConnectLinear(30, 20, p=0.4), torch.randn(8, 30)
    with fastreg.record_rng_states() as states:
        y = layer(x)
    keep = fastreg.dropout_mask((20, 30), 0.4, states[0])
    torch.testing.assert_close(y, x @ (layer.weight * keep / 0.6).T + layer.bias)
    y.sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0) * keep / 0.6)
    assert not torch.equal(layer(x), y) and type(pickle.loads(pickle.dumps(layer))) is nn.DropConnectLinear
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(layer))
    assert torch.equal(traced.eval()(x), layer(x))
