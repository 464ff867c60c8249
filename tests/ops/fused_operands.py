"""Operands of batch_norm_act and act_dropout, and their definition in float64."""

import torch

from fastreg import _activation
from fastreg.functional import dropout
from fastreg.reference import fused
from fastreg.reference.batch_norm import empty_normalized_like
from tests.common import contiguous

ops = torch.ops.fastreg
STATE = torch.tensor([11, 24])
NATIVE = [name for name, entry in _activation.TABLE.items() if not entry.weighted]
C = 6
EPS = 1e-5


def function(name):
    activation = _activation.parse("test", "act", name)
    return lambda x: _activation.apply(activation, x)


def operands(dtype=torch.float64, device="cpu", layout=contiguous, shape=(4, C, 5, 3)):
    torch.manual_seed(0)
    x, residual, grad = (2 * torch.randn(shape, device=device).to(dtype) for _ in range(3))
    weight, bias = torch.linspace(0.5, 1.5, C, device=device).to(dtype), torch.randn(C, device=device).to(dtype)
    return [t.requires_grad_() for t in (layout(x), layout(residual), weight, bias)], layout(grad)


def mask_of(x, p, state=STATE):
    """Which elements dropout of a batch norm of x keeps."""
    return dropout(empty_normalized_like(x.detach()).fill_(1), p, rng_state=state) != 0


def exact(x, residual, weight, bias, act, pre_act="identity", statistics=None, mask=None, p=0.0):
    """batch_norm_act in float64. mask: what dropout keeps."""
    x, residual, weight, bias = (None if t is None else t.double() for t in (x, residual, weight, bias))
    statistics = None if statistics is None else [s.double() for s in statistics]
    y = fused.batch_norm_act(
        x, weight, bias, EPS, function(pre_act), function(act), statistics=statistics, residual=residual
    )
    return y if mask is None else torch.where(mask, y / (1.0 - p), 0.0)
