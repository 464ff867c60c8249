"""FASTREG_BATCH_NORM_TIER and fused operators: the CUDA kernels give the same whichever tier does it. On a GPU or in
the host executor."""

import itertools

import pytest
import torch

from fastreg.functional import batch_norm_act
from tests.common import DEVICES, channels_last, contiguous
from tests.host_executor import EXECUTED
from tests.tolerances import assert_accurate

KINDS = ["output", "grad_input", "grad_parameter", "grad_parameter", "grad_input", "running", "running"]
TIERS = ["slab", "cluster", "grid", "l2"]
STATE = torch.tensor([7, 16])

# Where the CPU backend runs there are no tiers.
pytestmark = pytest.mark.parametrize("device", DEVICES if EXECUTED else DEVICES[1:])


def stages():
    """Keyword arguments of batch_norm_act: with and without a residual, gates and dropout."""
    for act, residual, p in itertools.product(["relu", "silu"], [True, False], [0.0, 0.4]):
        yield {"act": act, "residual": residual, "p": p}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("shape", [(16, 8, 8, 8), (3, 24, 7, 7)])
def test_tiers_agree(shape, layout, dtype, device, monkeypatch):
    torch.manual_seed(0)
    x, residual, g = (layout(torch.randn(shape).to(device, dtype)) for _ in range(3))
    weight, bias = torch.randn(shape[1], device=device), torch.randn(shape[1], device=device)

    def run(tier, tensors, stages):
        monkeypatch.setenv("FASTREG_BATCH_NORM_TIER", tier)
        x, weight, bias, residual, g = (t.detach().requires_grad_() for t in tensors)
        leaves = [x, weight, bias] + [residual] * stages["residual"]
        running = torch.zeros_like(weight), torch.ones_like(weight)
        stages = stages | {"residual": residual if stages["residual"] else None, "rng_state": STATE.to(device)}
        y = batch_norm_act(x, *running, weight, bias, training=True, momentum=0.3, pre_act="leaky_relu", **stages)
        gradients = torch.autograd.grad(y, leaves, g.detach())
        return y.detach(), *gradients, *[None] * (4 - len(leaves)), *running

    tensors = (x, weight, bias, residual, g)
    for case in stages():
        exact, expected = (run("streamed", ts, case) for ts in ([t.double() for t in tensors], tensors))
        for tier in TIERS:
            for kind, ours, streamed, right in zip(KINDS, run(tier, tensors, case), expected, exact, strict=True):
                if ours is not None:
                    assert_accurate(kind, ours, streamed, right)
                    assert ours.stride() == streamed.stride()
