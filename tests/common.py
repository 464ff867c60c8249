"""Inputs that the tests of several operators share."""

import copy

import pytest
import torch

import fastreg
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


def replay_as_traced(model, x, seed):
    """A context in which the model's calls have the masks that traced code draws after manual_seed(seed).

    That draws by torch.randint; eager code on CUDA draws from the generator's offset, on the CPU as traced code."""
    with fastreg.record_rng_states() as states:
        copy.deepcopy(model)(x)
    torch.manual_seed(seed)
    return fastreg.replay_rng_states([fastreg.reference.dropout.draw_state(x.device) for _ in states])


def in_layout(x, layout):
    """A leaf with x's values, except for `expanded`, in the layout."""
    return layout(x).detach()
