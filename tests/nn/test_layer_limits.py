"""What fastreg's layers refuse as torch's do, or unlike them, and how they say so."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fastreg
import fastreg.functional as F
from fastreg._extension import available

compiled = pytest.mark.skipif(not available("cpu"), reason="torch's own batch norm computes the wrong gradient")


def make(name):
    cls = getattr(fastreg.nn, name)
    if "Lazy" in name:
        return cls()
    if name == "DropConnectLinear":
        return cls(4, 4)
    return cls(4) if "Norm" in name or "Bias" in name else cls()


INPUTS = {
    "dropout": torch.ones(4000, 2),
    "dropout1d": torch.ones(4000, 2, 1),
    "dropout2d": torch.ones(4000, 2, 1, 1),
    "dropout3d": torch.ones(4000, 2, 1, 1, 1),
    "alpha_dropout": torch.ones(4000, 2),
    "feature_alpha_dropout": torch.ones(4000, 2, 1),
}
PS = {
    "int": 1,
    "bool": True,
    "float64": np.float64(0.5),
    "float32": np.float32(0.5),
    "tensor": torch.tensor(0.5),
    "wide tensor": torch.tensor(0.5, dtype=torch.float64),
    "frozen Parameter": nn.Parameter(torch.tensor(0.5), requires_grad=False),
    "Parameter": nn.Parameter(torch.tensor(0.5)),
    "its function": nn.Parameter(torch.tensor(0.0)).sigmoid(),
    "str": "0.5",
    "None": None,
    "large": 1.5,
    "negative": -1,
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("kind", PS)
@pytest.mark.parametrize("training", [True, False])
def test_kinds_of_p(name, kind, training):
    x, p = INPUTS[name], PS[kind]
    try:
        expected = getattr(nn.functional, name)(x, p, training)
    except Exception as error:
        with pytest.raises(type(error)):
            getattr(F, name)(x, p, training)
        return
    y = getattr(F, name)(x, p, training)
    assert y.requires_grad is expected.requires_grad is False
    changed, expected_changed = (float((t != x).double().mean()) for t in (y, expected))
    assert abs(changed - expected_changed) < 0.06


@pytest.mark.parametrize("p", [PS["Parameter"], PS["its function"]])
def test_p_that_requires_grad(p):
    """The functions that torch has not refuse it alike, and modules where torch's do: in forward."""
    x, channels = torch.ones(4, 2), torch.ones(4, 2, requires_grad=True)
    for call in (
        lambda: F.drop_path(x, p),
        lambda: F.act_dropout(x, "relu", p),
        lambda: F.batch_norm_act(channels, None, None, training=True, p=p),
        lambda: fastreg.dropout_mask((2, 3), p, torch.tensor([0, 0])),
        lambda: fastreg.nn.DropPath(p)(x),
        lambda: fastreg.nn.ActDropout("relu", p)(x),
        lambda: fastreg.nn.DropConnectLinear(2, 2, p=p)(x),
    ):
        with pytest.raises(TypeError, match=r"p must be a float, got a (Parameter|Tensor) that requires grad"):
            call()
    for layers in (nn, fastreg.nn):
        layer = layers.Dropout(p)
        with pytest.raises(TypeError):
            layer(x)
        with pytest.raises(TypeError):
            layer.eval()(x)


@pytest.mark.parametrize("name", fastreg.nn.__all__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles(name, protocol):
    torch.manual_seed(0)
    layer = make(name)
    layer.eval()
    layer.mark = "of the user"
    copies = [pickle.loads(pickle.dumps(layer, protocol)), copy.copy(layer)]
    if "Lazy" not in name:  # torch cannot copy what has no values
        copies.append(copy.deepcopy(layer))
    for other in copies:
        assert type(other) is type(layer) and other.mark == layer.mark and str(other) == str(layer)
        if "Lazy" in name or name == "SyncBatchNorm":
            continue
        x = torch.randn(*{"1": (5, 4, 3), "2": (5, 4, 3, 2), "3": (5, 4, 3, 2, 2)}.get(name.strip("Actd")[-1:], (5, 4)))
        torch.testing.assert_close(other(x), layer(x))
        torch.testing.assert_close(other.state_dict(), layer.state_dict())


@pytest.mark.parametrize("name", fastreg.nn.__all__)
def test_script_names_the_remedy(name):
    layer = make(name)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(layer))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that scripting is deprecated
        for scripted in (layer, model):
            with pytest.raises(RuntimeError, match=f"cannot compile fastreg.nn.{name}: .*torch.jit.trace") as error:
                torch.jit.script(scripted)
            assert (f"torch.nn.{name} in its place" in str(error.value)) is hasattr(nn, name)
            assert model[1][0] is layer
        # What the words say.
        if name.startswith("BatchNorm") and hasattr(nn, name):
            theirs = getattr(nn, name)(4)
            theirs.load_state_dict(layer.state_dict())
            torch.jit.script(theirs)
        if "Lazy" not in name and "Sync" not in name and "2d" not in name and "3d" not in name:
            traced = torch.jit.trace(layer.eval(), torch.randn(3, 4))
            assert not any("fastreg" in node.kind() for node in traced.inlined_graph.nodes())


MODES = {
    "BatchNorm1d": lambda: fastreg.nn.BatchNorm1d(4),
    "BatchNormAct1d": lambda: fastreg.nn.BatchNormAct1d(4, act="silu"),
}


@compiled
@pytest.mark.parametrize("name", MODES)
def test_training_between_an_evaluation_and_its_backward(name):
    """The gradient would be a function of statistics that are no more; torch computes a wrong one."""
    layer = MODES[name]()
    layer.running_mean.normal_()
    x = torch.randn(8, 4, requires_grad=True)
    y = layer.eval()(x)
    layer.train()(torch.randn(8, 4))
    with pytest.raises(
        RuntimeError, match="modified by an inplace operation.*running statistics.*call backward before"
    ):
        y.sum().backward()
    # Backward first is the remedy.
    layer.eval()(x).sum().backward()
    layer.train()(torch.randn(8, 4)).sum().backward()
    # Of other changes the words are autograd's own.
    y = layer.train()(x)
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation") as error:
        y.sum().backward()
    assert "running statistics" not in str(error.value)
    y = layer.eval()(x)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time") as error:
        y.sum().backward()
    assert "running statistics" not in str(error.value)
    assert "Call backward before" in fastreg.nn.batch_norm.__doc__
