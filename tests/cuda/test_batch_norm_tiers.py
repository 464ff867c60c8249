"""FASTREG_BATCH_NORM_TIER: the CUDA kernels give the same whichever tier does it. On a GPU or in the host executor."""

import pytest
import torch

from fastreg import functional as F
from tests.common import DEVICES
from tests.host_executor import EXECUTED
from tests.tolerances import assert_accurate

KINDS = ["output", "grad_input", "grad_parameter", "grad_parameter", "running", "running"]
TIERS = ["slab", "cluster", "streamed"]

# Where the CPU backend runs there are no tiers.
pytestmark = pytest.mark.parametrize("device", DEVICES if EXECUTED else DEVICES[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 5, 8, 8), (17, 16, 3, 3), (3, 24, 7, 7)])
def test_tiers_agree(shape, dtype, device, monkeypatch):
    torch.manual_seed(0)
    x, g = (torch.randn(shape).to(device, dtype) for _ in range(2))
    weight, bias = torch.randn(shape[1], device=device), torch.randn(shape[1], device=device)

    def run(x, g, weight, bias):
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        running = torch.zeros_like(weight), torch.ones_like(weight)
        y = F.batch_norm(leaves[0], *running, *leaves[1:], training=True, momentum=0.3)
        return y.detach(), *torch.autograd.grad(y, leaves, g), *running

    monkeypatch.setenv("FASTREG_BATCH_NORM_TIER", "streamed")
    exact = run(*(t.double() for t in (x, g, weight, bias)))
    expected = run(x, g, weight, bias)
    for tier in TIERS:
        monkeypatch.setenv("FASTREG_BATCH_NORM_TIER", tier)
        for kind, ours, streamed, right in zip(KINDS, run(x, g, weight, bias), expected, exact, strict=True):
            assert_accurate(kind, ours, streamed, right)


@pytest.mark.parametrize("tier", TIERS)
def test_counts_batches(tier, device, monkeypatch):
    monkeypatch.setenv("FASTREG_BATCH_NORM_TIER", tier)
    x, count = torch.randn(16, 5, 8, 8, device=device), torch.zeros((), dtype=torch.int64, device=device)
    mean, var = torch.zeros(5, device=device), torch.ones(5, device=device)
    for batches in range(1, 4):
        torch.ops.fastreg.batch_norm_train(x * batches, None, None, mean, var, count, None, 1e-5)
        assert count.item() == batches
    expected = torch.stack([(x * batches).mean((0, 2, 3)) for batches in range(1, 4)]).mean(0)
    torch.testing.assert_close(mean, expected)


def test_unknown_tier(device, monkeypatch):
    monkeypatch.setenv("FASTREG_BATCH_NORM_TIER", "fastest")
    with pytest.raises(ValueError, match="FASTREG_BATCH_NORM_TIER must name a tier, got fastest"):
        F.batch_norm(torch.randn(4, 4, device=device), None, None, training=True)
