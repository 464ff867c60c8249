"""FASTREG_AUTOGRAD: what differentiates the operators."""

import os
import subprocess
import sys

import pytest
import torch

PROGRAM = """
import torch, fastreg
x = torch.ones(4, 3, requires_grad=True)
print(fastreg.functional.dropout(x).grad_fn.name())
print(fastreg.nn.BatchNorm1d(3)(x).grad_fn.name())
print(fastreg.functional.act_dropout(x).grad_fn.name())
print(fastreg.functional.batch_norm_act(x, None, None, training=True).grad_fn.name())
"""
NODES = ["DropoutBackward", "BatchNormBackward", "ActDropoutBackward", "BatchNormActBackward"]

pytestmark = pytest.mark.not_on_kernels("it is a matter of importing fastreg")


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
    name = torch.ops.fastreg.dropout_seeded(x, 0.5)[0].grad_fn.name()
    assert name == ("fastreg::DropoutBackward" if derivatives == "cpp" else "DropoutBackward")
