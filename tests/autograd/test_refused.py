"""What the derivatives refuse, in C++ and in Python alike: each with the same words."""

import pytest
import torch
from torch.autograd.forward_ad import dual_level, make_dual

from fastreg import functional as F
from tests.common import COMPILED_BACKENDS

ops = torch.ops.fastreg
pytestmark = [
    pytest.mark.skipif(not COMPILED_BACKENDS, reason="the operators are compiled code"),
    pytest.mark.usefixtures("derivatives"),
]

FUSED = ("identity", 0.0, None, "relu", 0.0, None, False, 0.0, None)


def batch_norm(x, mean, var, training):
    return F.batch_norm(x, mean, var, training=training)


def batch_norm_act(x, mean, var, training):
    return F.batch_norm_act(x, mean, var, training=training)


def statistics():
    return torch.zeros(3), torch.ones(3)


functions = pytest.mark.parametrize("function", [batch_norm, batch_norm_act])


@functions
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("which", [0, 1])
def test_statistics_that_require_grad(function, training, which):
    """Before anything is written."""
    given = statistics()
    given[which].requires_grad_()
    name = ("running_mean", "running_var")[which]
    with pytest.raises(RuntimeError, match=f"{function.__name__}: {name} must not require grad, got"):
        function(torch.randn(4, 3), *given, training)
    assert all(map(torch.equal, given, statistics()))


@functions
def test_statistics_that_training_has_updated_since(function):
    x, given = torch.randn(4, 3, requires_grad=True), statistics()
    y = function(x, *given, False)
    function(x, *given, True)
    with pytest.raises(RuntimeError, match="(?s)modified by an inplace operation.*call backward before that pass"):
        y.sum().backward()


def test_another_tensor_that_was_written_to():
    """Is not explained by statistics where there are none."""
    x = torch.randn(4, 3, requires_grad=True) * 1
    y = F.batch_norm(x, None, None, training=True)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation") as caught:
        y.sum().backward()
    assert "running statistics" not in str(caught.value)


CALLS = {
    "act_dropout": lambda x, r: ops.act_dropout(x, None, "relu", 0.0, 0.0, None, r, None),
    "act_dropout seeded": lambda x, r: ops.act_dropout_seeded(x, None, "relu", 0.0, 0.5, r, None)[0],
    "batch_norm_act": lambda x, r: ops.batch_norm_act_train(x, *[None] * 5, 0.1, 1e-5, *FUSED[:2], r, *FUSED[3:])[0],
    "batch_norm_act in evaluation": lambda x, r: ops.batch_norm_act_eval(
        x, None, None, *statistics(), 1e-5, *FUSED[:2], r, *FUSED[3:]
    )[0],
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("which", [0, 1])
def test_tangents_of_fused_operators(call, which):
    operands = [torch.randn(4, 3) for _ in range(2)]
    with dual_level():
        operands[which] = make_dual(operands[which], torch.ones(4, 3))
        with pytest.raises(NotImplementedError, match=f"{call.split()[0]}: arguments must not have tangents, got one"):
            CALLS[call](*operands)
