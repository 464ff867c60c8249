"""The CPU's batch norm of short planes: channels next to each other share a task, and are written plane by plane."""

import pytest
import torch

import fastreg
from fastreg import functional as F
from tests.tolerances import assert_accurate

pytestmark = pytest.mark.skipif(
    fastreg._extension.problem() is not None, reason=f"no extension: {fastreg._extension.problem()}"
)

# Groups that divide the channels and that do not; planes of whole vectors, of others, of less than one; blocks of
# planes that divide a channel and that do not.
SHAPES = [(40, 40, 7, 7), (33, 70, 7, 7), (5, 100, 3, 5), (129, 34, 3, 1), (17, 65, 14, 14), (1, 48, 31, 1)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KINDS = ["output", "grad_input", "grad_parameter", "grad_parameter"]


def run(function, x, grad, weight, bias, training):
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    statistics = torch.linspace(-1, 1, x.shape[1]).to(weight), torch.linspace(0.5, 2, x.shape[1]).to(weight)
    y = function(leaves[0], *statistics, *leaves[1:], training=training)
    return y.detach(), *torch.autograd.grad(y, leaves, grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_as_exact_as_torch(shape, dtype, training):
    torch.manual_seed(0)
    x, grad = (torch.randn(shape).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[1]).to(dtype) for _ in range(2))
    operands = x, grad, weight, bias
    exact = run(torch.nn.functional.batch_norm, *(t.double() for t in operands), training)
    ours = run(F.batch_norm, *operands, training)
    if dtype == torch.float64:  # in which the reference is no more exact
        return torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)
    of_torch = run(torch.nn.functional.batch_norm, *operands, training)
    terms = grad.double().abs().sum((0, 2, 3)) * 4
    for kind, value, theirs, right in zip(KINDS, ours, of_torch, exact, strict=True):
        assert_accurate(kind, value, theirs, right, terms if kind == "grad_parameter" else None)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_channel_by_its_own_coefficients(shape):
    """Of channels of one value each: what a neighbour's coefficients had a part in would show."""
    channel = torch.arange(shape[1]).view(1, -1, 1, 1).expand(shape).float()
    statistics = torch.zeros(shape[1]), torch.ones(shape[1])
    weight, bias = torch.arange(1.0, shape[1] + 1), torch.arange(shape[1]) * 0.5
    y = F.batch_norm(channel.contiguous(), *statistics, weight, bias, eps=0.0)
    assert torch.equal(y, channel * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1))
