"""Launches that a device refuses although its limits promise them: the streamed kernels do it instead, and once."""

import ctypes

import pytest
import torch

from fastreg import _extension, nn
from tests.common import channels_last, contiguous

pytestmark = pytest.mark.executor

# Tiers, and what they divide among blocks that have to be resident together. Of the last the streamed kernels gather
# the gates otherwise than the tier.
CASES = [
    ("grid", channels_last, (64, 16, 8, 8)),
    ("cluster", contiguous, (32, 2, 16, 16)),
    ("cluster", contiguous, (32, 16, 7, 7)),
]


def last_error():
    """cudaPeekAtLastError() of the executor: what PyTorch's own launches would take for theirs."""
    return ctypes.CDLL(_extension.module().__file__)["_Z19cudaPeekAtLastErrorv"]()


def refused_launches():
    return ctypes.c_int.in_dll(ctypes.CDLL(_extension.module().__file__), "_ZN13host_executor16refused_launchesE").value


def step(layer, x, residual, grad):
    """What one training step writes."""
    x, residual = (t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, residual))
    leaves = [x, *layer.parameters()]
    if isinstance(layer, nn.BatchNormAct2d):
        leaves.append(residual)
        torch.manual_seed(1)
        y = layer(x, residual)
    else:
        y = layer(x)
    return [y.detach(), *layer.buffers(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize(("tier", "layout", "shape"), CASES)
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("fused", [False, True])
def test_streamed_instead(tier, layout, shape, fused, momentum, monkeypatch):
    torch.manual_seed(0)
    tensors = [layout(torch.randn(shape)) for _ in range(3)]

    def run(tier):
        monkeypatch.setenv("FASTREG_BATCH_NORM_TIER", tier)
        act = nn.BatchNormAct2d(shape[1], act="relu", drop=0.3, momentum=momentum)
        return step(act if fused else nn.BatchNorm2d(shape[1], momentum=momentum), *tensors)

    streamed, planned = run("streamed"), run(tier)
    assert not all(map(torch.equal, planned, streamed))  # sums in another order: the tier was taken
    torch.testing.assert_close(planned, streamed, atol=1e-4, rtol=1e-5)
    monkeypatch.setenv("FASTREG_EXECUTOR_MULTIPROCESSORS", "0")
    assert all(map(torch.equal, run(tier), streamed))
    assert streamed[3] == 1  # batches counted
    assert last_error() == 0
    before = refused_launches()
    assert before > 0 and all(map(torch.equal, run(tier), streamed))
    assert refused_launches() == before  # it is not tried again
