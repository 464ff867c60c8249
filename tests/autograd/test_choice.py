"""FASTREG_AUTOGRAD: what differentiates the operators."""

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

import fastreg
from fastreg import _extension
from fastreg import functional as F
from tests.ops.test_autograd_nodes import cases, made

PROGRAM = """
import torch, fastreg
x = torch.ones(4, 3, requires_grad=True)
outputs = [  # of torch 2.11 nodes in Python live as long as these
    fastreg.functional.dropout(x),
    fastreg.nn.BatchNorm1d(3)(x),
    fastreg.functional.act_dropout(x),
    fastreg.functional.batch_norm_act(x, None, None, training=True),
]
print(*(y.grad_fn.name() for y in outputs))
"""
NODES = ["DropoutBackward", "BatchNormBackward", "ActDropoutBackward", "BatchNormActBackward"]


def run(choice):
    environment = {**os.environ, "FASTREG_AUTOGRAD": choice}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("choice, prefix", [("", "fastreg::"), ("cpp", "fastreg::"), ("python", "")])
def test_names_tell_which(choice, prefix):
    result = run(choice)
    assert result.stdout.split() == [prefix + node for node in NODES], result.stderr


def test_unknown():
    result = run("java")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.endswith("ImportError: fastreg: FASTREG_AUTOGRAD must be cpp or python, got 'java'\n")


@pytest.mark.parametrize("first", [True, False])
def test_the_fixture_leaves_nothing_behind(derivatives, first):
    """Whichever came before: the nodes are those that the fixture names."""
    x = torch.ones(3, requires_grad=True)
    y = torch.ops.fastreg.dropout_seeded(x, 0.5)[0]  # of torch 2.11 its node in Python lives as long as it
    assert y.grad_fn.name() == ("fastreg::DropoutBackward" if derivatives == "cpp" else "DropoutBackward")


def outcome_of(case):
    """The output, first and second derivatives, and what is kept for them, of one of the cases of nodes."""
    inputs, call, grad = made(case)
    grad.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = call()
    kept = sorted((str(t.dtype), list(t.shape)) for t in kept)
    first = torch.autograd.grad(y, inputs, grad, create_graph=True)
    loss = sum((d.double() ** 2).sum() for d in first)
    return y, first, torch.autograd.grad(loss, (*inputs, grad), allow_unused=True), kept


@cases
def test_both_are_the_same_bit_for_bit(case):
    from fastreg.autograd import operators

    assert not _extension.differentiates_in_python(), "FASTREG_AUTOGRAD=python leaves nothing to compare with"
    y, first, second, kept = outcome_of(case)
    library = operators.use_functions()
    try:
        other_y, other_first, other_second, other_kept = outcome_of(case)
    finally:
        library._destroy()
    assert "fastreg::" in y.grad_fn.name() and "fastreg::" not in other_y.grad_fn.name()
    for ours, others in zip((y, *first, *second), (other_y, *other_first, *other_second), strict=True):
        assert (ours is None and others is None) or torch.equal(ours, others)
    assert kept == other_kept


DRAWING = {
    "dropout": lambda x, r: F.dropout(x, 0.5),
    "dropout in place": lambda x, r: F.dropout(x * 1, 0.5, inplace=True),
    "alpha_dropout": lambda x, r: F.alpha_dropout(x, 0.5, True),
    "dropout1d": lambda x, r: F.dropout1d(x, 0.5),
    "dropout1d in place": lambda x, r: F.dropout1d(x * 1, 0.5, inplace=True),
    "drop_path": lambda x, r: F.drop_path(x, 0.5, residual=r),
    "act_dropout": lambda x, r: F.act_dropout(x, "silu", 0.5, bias=r[0, 0], residual=r),
    "act_dropout of samples": lambda x, r: F.act_dropout(x, "silu", 0.5, residual=r, drop_path=True),
    "act_dropout of the identity": lambda x, r: F.act_dropout(x, "identity", 0.5, residual=r),
    "batch_norm_act": lambda x, r: F.batch_norm_act(x, None, None, training=True, act="relu", residual=r, p=0.5),
    "batch_norm_act with a bias": lambda x, r: F.batch_norm_act(
        x, None, None, None, r[0, :, 0], True, act="silu", p=0.5
    ),
}


@pytest.mark.parametrize("function", DRAWING.values(), ids=DRAWING.keys())
def test_drawn_states(function, derivatives):
    """Where operators draw their states, these are kept, and nothing else is drawn."""
    x, r = (torch.randn(6, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    g = torch.randn(6, 4, 5, dtype=torch.float64)

    def outcome(given):
        torch.manual_seed(3)
        with fastreg.replay_rng_states([fastreg.draw_rng_state()]) if given else nullcontext():
            y = function(x, r)
        gradients = torch.autograd.grad(y, (x, r), g, materialize_grads=True)
        return y, *gradients, torch.get_rng_state()

    assert all(map(torch.equal, outcome(given=False), outcome(given=True)))
