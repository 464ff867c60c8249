"""Inputs that the tests of several operators share."""

import pytest
import torch

from fastreg._extension import available

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
COMPILED_BACKENDS = [device for device in ("cpu", "cuda") if available(device)]  # no GPU is needed to be compiled
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def contiguous(x):
    return x.contiguous()


def channels_last(x):
    """NCHW or NCDHW with channels innermost; other ranks: dimension 1 innermost."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 1 else x


def transposed(x):
    """Dense, in an order of its own."""
    return x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() else x


def sliced(x):
    """With gaps between the elements."""
    return x.repeat_interleave(2, dim=-1)[..., ::2] if x.dim() else x


def expanded(x):
    """Every element the same memory."""
    return x.flatten()[:1].reshape([1] * x.dim()).expand(x.shape) if x.numel() else x


LAYOUTS = [contiguous, channels_last, transposed, sliced, expanded]


def in_layout(x, layout):
    """A leaf with x's values, except for `expanded`, in the layout."""
    return layout(x).detach()
