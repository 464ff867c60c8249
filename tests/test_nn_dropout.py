"""fastreg.nn.Dropout in place of torch.nn.Dropout."""

import copy
import inspect
import math
import pickle

import pytest
import torch

import fastreg

DROPOUTS = [(fastreg.nn.Dropout, torch.nn.Dropout)]


@pytest.mark.parametrize("ours, torchs", DROPOUTS)
def test_is_torchs(ours, torchs):
    assert issubclass(ours, torchs) and ours.__name__ == torchs.__name__
    assert inspect.signature(ours) == inspect.signature(torchs)
    for arguments in ({}, {"p": 0.2}, {"inplace": True}, {"p": 1, "inplace": True}):
        one, other = ours(**arguments), torchs(**arguments)
        assert repr(one) == repr(other) and one.__dict__.keys() == other.__dict__.keys()
        assert one.state_dict() == other.state_dict() == {}


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_p_is_refused(p):
    with pytest.raises(ValueError, match=r"Dropout: p must lie in \[0, 1\], got"):
        fastreg.nn.Dropout(p)


def test_forward():
    x = torch.ones(1000)
    module = fastreg.nn.Dropout(0.3)
    torch.manual_seed(0)
    y = module(x)
    torch.manual_seed(0)
    assert torch.equal(y, fastreg.functional.dropout(x, 0.3))
    assert module.eval()(x) is x
    module.train()
    module.p = 0.0
    assert module(x) is x
    module.p, module.inplace = 0.5, True
    assert module(x) is x and (x == 0).any()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies(copied):
    module = copied(fastreg.nn.Dropout(0.3, True).eval())
    assert type(module) is fastreg.nn.Dropout and (module.p, module.inplace, module.training) == (0.3, True, False)


def test_symbolic_trace_keeps_the_module():
    """As with torch's layers, the traced model still follows train() and eval()."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), fastreg.nn.Dropout(0.5))
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    x = torch.randn(100, 4)
    assert (traced(x) == 0).any()
    assert torch.equal(traced.eval()(x), model[0](x))


def test_symbolic_trace_of_the_function():
    traced = torch.fx.symbolic_trace(lambda x: fastreg.functional.dropout(x, 0.5))
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets == [fastreg.functional.dropout] and (traced(torch.ones(100)) == 0).any()
