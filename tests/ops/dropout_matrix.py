"""The ways to one mask: every way in which a tensor can meet the dropout stream, with the mask that came out.

Run as a program it prints which instruction set it used, and fails where a mask is not the reference's.
"""

import sys

import torch

import fastreg
from fastreg import reference
from tests.common import DTYPES, channels_last, contiguous, expanded, sliced, transposed
from tests.known_answers import rng_state

OPS = torch.ops.fastreg
SHAPE = (6, 24, 7, 8)  # 8064 elements
FEATURES, SAMPLES = 6 * 24, 6
TIE = (32768 * 65536 + 32768) / 2.0**32  # half of the elements whose 16-bit draw is 32768 are kept
STREAMS = [(0.3, rng_state(2**63 + 11, 2**34 + 8)), (TIE, rng_state(1, 0)), (0.999, rng_state(5, 2**64 - 8))]
UNSCALED = (1.0, -0.0, 0.0)
GRADIENTS = [contiguous, channels_last, transposed, sliced, expanded]


def in_memory_order(y):
    """The elements of a dense tensor as they lie in memory."""
    return y.as_strided((y.numel(),), (1,))


def kept(y):
    return in_memory_order(y.detach()).cpu() != 0


def elements(device, p, state):
    """(way, mask of the elements) for each way."""
    for dtype in DTYPES:
        for layout in (contiguous, channels_last, transposed):
            name = f"{dtype} {layout.__name__}"
            x = layout(torch.ones(SHAPE, device=device, dtype=dtype))
            yield f"{name}", kept(OPS.dropout(x, p, state))
            for transform in (UNSCALED, (0.5, 0.25, 0.0)):
                yield f"{name} {transform}", kept(OPS.dropout(x, p, state, None, None, transform))
            y = x.clone()
            OPS.dropout_(y, p, state)
            yield f"{name} in place", kept(y)
            for gradient in GRADIENTS:
                x = x.detach().requires_grad_()
                y = OPS.dropout(x, p, state)
                g = gradient(torch.ones(SHAPE, device=device, dtype=dtype))
                (dx,) = torch.autograd.grad(y, x, g)
                yield f"{name} backward {gradient.__name__}", kept(torch.empty_like(x).copy_(dx))
    x = torch.ones(SHAPE, device=device)
    n = x.numel()
    for begin in (0, 1, 8, 17, 64, 4096):  # at and off the blocks of 8; odd starts are not aligned either
        parts = [OPS.dropout(t, p, state, None, (first, n, 0)) for first, t in ((0, x.flatten()[:begin]),
                 (begin, x.flatten()[begin:])) if t.numel()]  # fmt: skip
        yield f"split at {begin}", kept(torch.cat(parts))
    for columns in (1, 3, 8, 40):  # one of several devices that hold a block of columns each
        whole, rows = x.view(n // 56, 56), n // 56
        for inplace in (False, True):
            parts = []
            for first in range(0, 56, columns):
                part = whole[:, first : first + columns].clone()
                index_map = (first, part.shape[1], 56)
                parts.append(part if inplace else OPS.dropout(part, p, state, None, index_map))
                if inplace:
                    OPS.dropout_(part, p, state, index_map)
            assert sum(part.shape[1] for part in parts) == 56 and rows == parts[0].shape[0]
            yield f"columns of {columns}, in place: {inplace}", kept(torch.cat(parts, 1))
    yield "dropout_mask", fastreg.dropout_mask(SHAPE, p, state.to(device)).flatten().cpu()


def features(device, dims, p, state):
    """(way, mask of the features or samples) for each way."""

    def kept(y):
        y = y.detach().cpu().flatten(0, dims - 1).flatten(1)
        assert (y == y[:, :1]).all()
        return y[:, 0] != 0

    for dtype in DTYPES:
        for layout in (contiguous, channels_last, transposed, sliced):
            name = f"{dtype} {layout.__name__}"
            x = layout(torch.ones(SHAPE, device=device, dtype=dtype))
            for transform in (None, UNSCALED, (0.5, 0.25, 0.0)):
                yield f"{name} {transform}", kept(OPS.feature_dropout(x, dims, p, state, None, transform))
            y = x.clone()
            OPS.feature_dropout_(y, dims, p, state)
            yield f"{name} in place", kept(y)
            zero = torch.zeros(SHAPE, device=device, dtype=dtype)
            yield f"{name} residual", kept(OPS.feature_dropout(x, dims, p, state, residual=zero))
            for gradient in GRADIENTS:
                x = x.detach().requires_grad_()
                y = OPS.feature_dropout(x, dims, p, state)
                (dx,) = torch.autograd.grad(y, x, gradient(torch.ones(SHAPE, device=device, dtype=dtype)))
                yield f"{name} backward {gradient.__name__}", kept(dx)
    x = torch.ones(SHAPE, device=device)
    per_sample = 1 if dims == 1 else SHAPE[1]
    for begin in (1, 2, 5):
        parts = [OPS.feature_dropout(x[:begin], dims, p, state)]
        parts.append(OPS.feature_dropout(x[begin:], dims, p, state, (begin * per_sample, FEATURES, 0)))
        yield f"split at {begin}", kept(torch.cat(parts))
    mask = fastreg.dropout_mask(SHAPE, p, state.to(device), dims=dims)
    yield "dropout_mask", kept(mask.int())


def check(device):
    """Compare all with the reference, with 1 to 3 threads. Returns how many masks there were."""
    count = 0
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3) if device == "cpu" else (threads,):
            torch.set_num_threads(number)
            for p, state in STREAMS:
                ways = [(elements, (), 8064), (features, (2,), FEATURES), (features, (1,), SAMPLES)]
                for masks, dims, numel in ways:
                    expected = reference.dropout.keep_mask(numel, p, state)
                    for name, mask in masks(device, *dims, p, state):
                        assert torch.equal(mask, expected), f"{masks.__name__}{dims}, p {p}, {number} threads: {name}"
                        count += 1
    finally:
        torch.set_num_threads(threads)
    return count


if __name__ == "__main__":
    print(fastreg.build_info()["instruction_set"], check(sys.argv[1]))
