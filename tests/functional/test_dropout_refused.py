"""What dropout refuses, with which exception and words, and that nothing is written before; what it leaves to torch."""

import math
import os
import subprocess
import sys
import tempfile

import pytest
import torch

from fastreg import _routing
from fastreg import functional as F
from tests.known_answers import rng_state


def leaf():
    return torch.ones(6, requires_grad=True)


REFUSED = {
    "p above 1": (lambda: torch.ones(3), {"p": 1.5}, ValueError, "dropout: p must lie in [0, 1], got 1.5"),
    "p below 0": (lambda: torch.ones(3), {"p": -0.1}, ValueError, "dropout: p must lie in [0, 1], got -0.1"),
    "p NaN": (lambda: torch.ones(3), {"p": math.nan}, ValueError, "dropout: p must lie in [0, 1], got nan"),
    "p in evaluation": (lambda: torch.ones(3), {"p": 2.0, "training": False}, ValueError, "got 2.0"),
    "p a string": (lambda: torch.ones(3), {"p": "a"}, TypeError, "'str'"),
    "integers": (lambda: torch.arange(3), {}, RuntimeError, "input must be floating point where elements are dropped, "
                 "got torch.int64"),
    "booleans": (lambda: torch.ones(3) > 0, {}, RuntimeError, "got torch.bool"),
    "no tensor": (lambda: [1.0], {}, TypeError, "must be Tensor, not list"),
    "state a list": (lambda: torch.ones(3), {"rng_state": [1, 2]}, (TypeError, RuntimeError), "rng_state"),
    "state of floats": (lambda: torch.ones(3), {"rng_state": torch.ones(2)}, TypeError,
                        "dropout: rng_state must be"),
    "state of int32": (lambda: torch.ones(3), {"rng_state": torch.ones(2).int()}, TypeError,
                       "dropout: rng_state must be"),
    "state too long": (lambda: torch.ones(3), {"rng_state": torch.ones(3).long()}, ValueError,
                       "dropout: rng_state must have shape [2], got [3]"),
    "state 2-D": (lambda: torch.ones(3), {"rng_state": torch.ones(2, 1).long()}, ValueError, "got [2, 1]"),
    "state on meta": (lambda: torch.ones(3), {"rng_state": torch.ones(2, device="meta").long()},
                      RuntimeError, "dropout: rng_state must be on cpu or the CPU, got meta"),
}  # fmt: skip


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, inplace, compiled, monkeypatch):
    """With operators, and with those composed of torch's."""
    if not compiled:
        monkeypatch.setattr(_routing, "_COMPILED_BACKENDS", frozenset())
    make, arguments, exception, words = REFUSED[case]
    input = make()
    before = input.clone() if isinstance(input, torch.Tensor) else None
    state = torch.get_rng_state()
    with pytest.raises(exception) as raised:
        F.dropout(input, inplace=inplace, **arguments)
    assert words in str(raised.value)
    assert before is None or torch.equal(input, before)
    assert torch.equal(torch.get_rng_state(), state)


IN_PLACE = {
    "leaf": (leaf, "a leaf Variable that requires grad is being used in an in-place operation"),
    "view of a leaf": (lambda: leaf().view(2, 3), "a view of a leaf Variable that requires grad"),
    "one of many views": (lambda: (leaf() * 1).split(3)[0], "function that returns multiple views"),
    "overlapping": (lambda: torch.ones(1).expand(4), "more than one element of the written-to tensor"),
    "inference tensor": (lambda: _inference_tensor(), r"inference tensor .*\bInferenceMode"),
}


def _inference_tensor():
    with torch.inference_mode():
        return torch.ones(4)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("case", IN_PLACE)
def test_refused_in_place(case, given):
    make, words = IN_PLACE[case]
    input = make()
    with pytest.raises(RuntimeError, match=words):
        F.dropout(input, 0.9, inplace=True, rng_state=rng_state(1, 0) if given else None)
    with pytest.raises(RuntimeError, match=words):
        torch.nn.functional.dropout(make(), 0.9, inplace=True)
    assert (input.detach() == 1).all()


def test_view_made_without_grad_is_refused_in_place():
    y = leaf() * 1
    with torch.no_grad():
        view = y[:3]
    with pytest.raises(RuntimeError, match="no_grad"):
        F.dropout(view, inplace=True)
    assert (y == 1).all()


@pytest.mark.parametrize("inplace", [False, True])
def test_state_made_in_inference_mode(inplace):
    with torch.inference_mode():
        state = rng_state(7, 0)
    x = torch.ones(64, requires_grad=True)
    y = F.dropout(x * 1, inplace=inplace, rng_state=state)
    y.sum().backward()
    assert torch.equal(x.grad, y)


def test_dtype_without_kernels_draws_nothing():
    x = torch.ones(4).to(torch.float8_e5m2)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="must be float32"):
        torch.ops.fastreg.dropout_seeded(x, 0.5)
    assert torch.equal(torch.get_rng_state(), before)


# ---- what is left to torch


class Subclass(torch.Tensor):
    pass


OTHERS = {
    "subclass": lambda: torch.ones(1000).as_subclass(Subclass),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(500), torch.ones(300)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(500, 1), torch.ones(300, 1)], layout=torch.jagged),
    "meta": lambda: torch.ones(10, device="meta"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_left_to_torch(case):
    x = OTHERS[case]()
    torch.manual_seed(0)
    ours = F.dropout(x, 0.25)
    torch.manual_seed(0)
    torchs = torch.nn.functional.dropout(x, 0.25)
    assert type(ours) is type(x)
    if x.device.type != "meta":
        pairs = zip(ours.unbind(), torchs.unbind(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    with pytest.raises(NotImplementedError, match="rng_state must be None for input that torch's own dropout takes"):
        F.dropout(x, 0.25, rng_state=rng_state(1, 0))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_torchs_dtypes_are_torchs(dtype):
    """Which of them torch's dropout takes depends on its version: the outcome is torch's, error or result."""

    def outcome(function):
        torch.manual_seed(0)
        try:
            return function(torch.ones(64).to(dtype)).float().tolist()
        except NotImplementedError as error:
            return str(error)

    assert outcome(F.dropout) == outcome(torch.nn.functional.dropout)


def test_disabled():
    """In a process of its own: the variable is read at import."""
    program = """
import torch, fastreg
x = torch.randn(100)
torch.manual_seed(0); ours = fastreg.functional.dropout(x)
torch.manual_seed(0); torchs = torch.nn.functional.dropout(x)
assert torch.equal(ours, torchs)
assert fastreg.build_info()["backends"] == []
norms = fastreg.nn.BatchNorm1d(5), torch.nn.BatchNorm1d(5)
x = x.view(20, 5)
assert torch.equal(norms[0](x), norms[1](x)) and norms[0].num_batches_tracked == 1
assert not hasattr(torch.ops.fastreg, "dropout")
"""
    environment = {**os.environ, "FASTREG_DISABLE": "1", "FASTREG_EXPECT": ""}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_without_extension():
    """The same masks, and batch norm as torch's."""
    program = """
import sys, warnings
sys.modules["fastreg._C"] = None
with warnings.catch_warnings(record=True) as caught:
    import fastreg
assert len(caught) == 1 and "slow fallbacks" in str(caught[0].message)
import torch
x, state = torch.randn(3, 100, requires_grad=True), torch.tensor([42, 8])
y = fastreg.functional.dropout(x, 0.1, rng_state=state)
assert torch.equal(y, fastreg.reference.dropout.dropout(x, 0.1, state))
y.sum().backward()
assert torch.equal(x.grad == 0, y == 0)
torch.manual_seed(5); y = fastreg.nn.Dropout()(torch.ones(1000))
torch.save(y, sys.argv[1])
norm = fastreg.nn.BatchNorm1d(100, momentum=None)
torch.testing.assert_close(norm(x), torch.nn.BatchNorm1d(100, momentum=None)(x))
assert norm.num_batches_tracked == 1
"""
    with tempfile.NamedTemporaryFile() as file:
        environment = {**os.environ, "FASTREG_EXPECT": ""}
        subprocess.run([sys.executable, "-c", program, file.name], check=True, env=environment)
        torch.manual_seed(5)
        assert torch.equal(torch.load(file.name), F.dropout(torch.ones(1000)))
