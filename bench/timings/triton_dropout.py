"""Dropout in Triton that keeps a seed and no mask: what one writes in Triton, to compare with."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

BLOCK = 1024


@triton.jit
def _dropout_kernel(x_ptr, y_ptr, elements, p, seed, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < elements
    x = tl.load(x_ptr + offsets, mask=inside)
    keep = tl.rand(seed, offsets) > p
    tl.store(y_ptr + offsets, tl.where(keep, x / (1 - p), 0.0), mask=inside)


def _apply(x: Tensor, p: float, seed: int) -> Tensor:
    y = torch.empty_like(x)
    _dropout_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, y, x.numel(), p, seed, BLOCK=BLOCK)
    return y


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float, seed: int) -> Tensor:
        ctx.p, ctx.seed, ctx.stride = p, seed, x.stride()
        return _apply(x, p, seed)

    @staticmethod
    def backward(ctx, dy: Tensor):
        if dy.stride() != ctx.stride:  # elements are numbered in the order of memory
            dy = dy.new_empty_strided(dy.shape, ctx.stride).copy_(dy)
        return _apply(dy, ctx.p, ctx.seed), None, None


class TritonDropout(nn.Module):
    """dropout(input, p) of a dense tensor."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        return _Dropout.apply(input, self.p, int(torch.randint(1 << 31, ())))
