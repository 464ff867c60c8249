"""Dropout over the reference, as it is where no extension was built: its values, and derivatives of any order, while 16
bytes are kept."""

import os
import subprocess
import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from fastreg.autograd import dropout as page
from fastreg.reference import dropout as reference
from tests.common import LAYOUTS, in_layout

P, STATE = 0.4, torch.tensor([5, 8])
SHAPE = (4, 3, 5)
TRANSFORM = (3.0, 0.5, 1.0)
# Functions of an input, a residual and a random state, of what has the operators.
KINDS = {
    "elements": lambda on, x, r, s: on.dropout(x, P, s),
    "everything": lambda on, x, r, s: on.dropout(x, P, s, None, (16, 5, 40), TRANSFORM),
    "features": lambda on, x, r, s: on.feature_dropout(x, 2, P, s, None, TRANSFORM),
    "residual": lambda on, x, r, s: on.feature_dropout(x, 1, P, s, (3, 2, 7), None, r),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def inputs(*leading, requires_grad=False):
    return [torch.randn(*leading, *SHAPE, dtype=torch.float64, requires_grad=requires_grad) for _ in range(2)]


def saved_by(function):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        function()
    return saved


@kinds
def test_sixteen_bytes_are_kept(kind):
    x, r = inputs(requires_grad=True)
    kept = saved_by(lambda: kind(page, x, r, STATE))
    assert [(t.dtype, t.untyped_storage().nbytes()) for t in kept] == [(torch.int64, 16)]
    assert torch.bool in {t.dtype for t in saved_by(lambda: kind(reference, x, r, STATE))}  # what it would be: a mask


@kinds
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of_gradient", LAYOUTS)
def test_as_the_reference(kind, layout, of_gradient):
    """Bitwise, in whatever order input and gradient lie in memory."""
    x, r = (in_layout(t, layout).requires_grad_() for t in inputs())
    g = in_layout(inputs()[0], of_gradient)
    ours, exact = (kind(on, x, r, STATE) for on in (page, reference))
    assert torch.equal(ours, exact) and ours.stride() == exact.stride()
    first, second = (torch.autograd.grad(y, (x, r), g, allow_unused=True) for y in (ours, exact))
    for one, other in zip(first, second, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@kinds
def test_derivatives(kind):
    x, r = (t[:2, :2, :3].detach().requires_grad_() for t in inputs())

    def function(x, r):
        return kind(page, x, r, STATE)

    assert gradcheck(function, (x, r), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, (x, r), check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)


@kinds
@pytest.mark.parametrize(
    "transform",
    [hessian, lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacfwd(f)), lambda f: jacrev(jacrev(f))],
    ids=["forward over reverse", "forward twice", "reverse over forward", "reverse twice"],
)
def test_nested_transforms(kind, transform):
    x, r = inputs()
    ours, exact = (transform(lambda x, on=on: (kind(on, x, r, STATE) ** 3).sum())(x) for on in (page, reference))
    torch.testing.assert_close(ours, exact)


@kinds
@pytest.mark.parametrize(
    "in_dims", [(0, 0, None), (0, None, None), (None, 0, None), (0, 0, 0), (None, None, 0)], ids=str
)
def test_vmap(kind, in_dims):
    x, r = inputs(6)
    states = torch.stack((torch.arange(6), torch.zeros(6, dtype=torch.int64)), 1)
    arguments = [t if dim == 0 else t[0] for t, dim in zip((x, r, states), in_dims, strict=True)]

    def both(on):
        def loss(x, r, state):
            return (kind(on, x, r, state) ** 2).sum()

        return vmap(lambda *a: kind(on, *a), in_dims)(*arguments), vmap(grad(loss), in_dims)(*arguments)

    for ours, exact in zip(both(page), both(reference), strict=True):
        torch.testing.assert_close(ours, exact)


@kinds
def test_nothing_is_computed_that_is_not_asked_for(kind, monkeypatch):
    """Of a residual alone the gradient is the output's."""
    x, r = inputs()
    monkeypatch.setattr(page, "linear_part", lambda *_: pytest.fail("the input needs no gradient"))
    y = kind(page, x, r.requires_grad_(), STATE)
    assert y.requires_grad is (kind is KINDS["residual"])
    if y.requires_grad:
        g = torch.randn_like(y)
        assert torch.equal(*torch.autograd.grad(y, r, g), g)


def test_written_state():
    x, state = inputs(requires_grad=True)[0], STATE.clone()
    y = page.dropout(x, P, state)
    state.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_state_made_in_inference_mode():
    with torch.inference_mode():
        state = STATE.clone()
    x = inputs(requires_grad=True)[0]
    page.dropout(x, P, state).sum().backward()
    assert torch.equal(x.grad, reference.dropout(torch.ones_like(x), P, STATE))


def test_functions_keep_no_mask_without_extension():
    """Every kind of dropout, in place too; and what is refused is refused before anything is written."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.autograd.without_extension", "-p", "no:cacheprovider"]
    files = ["tests/functional/test_dropout_memory.py", "tests/functional/test_dropout_refused.py"]
    chosen = ["-k", "sixteen or refused_in_place or inference_mode"]
    environment = {**os.environ, "FASTREG_EXPECT": "", "FASTREG_AUTOGRAD": ""}
    result = subprocess.run([*command, *files, *chosen], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "passed" in result.stdout and "'backends': []" in result.stdout
