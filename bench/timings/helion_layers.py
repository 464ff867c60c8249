"""Dropout and batch norm in Helion, as one writes them there: no mask is kept; statistics in one pass, float32."""

from __future__ import annotations

import helion
import helion.language as hl
import torch
from torch import Tensor, nn

kernel = helion.kernel(static_shapes=False, autotune_effort="none")  # tuning takes minutes a shape


@kernel
def _dropout(x: Tensor, p: float, seed: int) -> Tensor:
    y = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        value = x[tile]
        y[tile] = torch.where(hl.rand([tile], seed=seed) > p, value / (1 - p), torch.zeros_like(value))
    return y


@kernel
def _normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of [rows, channels]: output, mean, inverse standard deviation."""
    rows, channels = x.size()
    y = torch.empty_like(x)
    mean = torch.empty([channels], dtype=torch.float32, device=x.device)
    invstd = torch.empty_like(mean)
    for channel in hl.tile(channels):
        total, squares = hl.zeros([channel], dtype=torch.float32), hl.zeros([channel], dtype=torch.float32)
        for row in hl.tile(rows):
            value = x[row, channel].to(torch.float32)
            total = total + value.sum(0)
            squares = squares + (value * value).sum(0)
        centre = total / rows
        scale = torch.rsqrt(squares / rows - centre * centre + eps)
        mean[channel], invstd[channel] = centre, scale
        for row in hl.tile(rows):
            value = (x[row, channel].to(torch.float32) - centre[None, :]) * scale[None, :]
            y[row, channel] = (value * weight[channel][None, :] + bias[channel][None, :]).to(x.dtype)
    return y, mean, invstd


@kernel
def _gradients(dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, channels = x.size()
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
    for channel in hl.tile(channels):
        total, product = hl.zeros([channel], dtype=torch.float32), hl.zeros([channel], dtype=torch.float32)
        centre, scale = mean[channel], invstd[channel]
        for row in hl.tile(rows):
            gradient = dy[row, channel].to(torch.float32)
            total = total + gradient.sum(0)
            product = product + (gradient * (x[row, channel].to(torch.float32) - centre[None, :])).sum(0)
        product = product * scale
        dbias[channel], dweight[channel] = total, product
        for row in hl.tile(rows):
            value = (x[row, channel].to(torch.float32) - centre[None, :]) * scale[None, :]
            inner = dy[row, channel].to(torch.float32) - (total[None, :] + value * product[None, :]) / rows
            dx[row, channel] = (inner * (weight[channel] * scale)[None, :]).to(x.dtype)
    return dx, dweight, dbias


def _flat(x: Tensor) -> Tensor:
    """The elements in the order of memory."""
    return x.as_strided((x.numel(),), (1,))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float, seed: int) -> Tensor:
        ctx.p, ctx.seed, ctx.stride = p, seed, x.stride()
        return _dropout(_flat(x), p, seed).as_strided(x.shape, x.stride())

    @staticmethod
    def backward(ctx, dy: Tensor):
        dy = dy.new_empty_strided(dy.shape, ctx.stride).copy_(dy) if dy.stride() != ctx.stride else dy
        return _dropout(_flat(dy), ctx.p, ctx.seed).as_strided(dy.shape, dy.stride()), None, None


class HelionDropout(nn.Module):
    """dropout(input, p) of a dense tensor."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        return _Dropout.apply(input, self.p, int(torch.randint(1 << 31, ())))


def _rows(x: Tensor) -> Tensor:
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _back(rows: Tensor, shape: torch.Size) -> Tensor:
    return rows.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, invstd = _normalise(_rows(x), weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, invstd)
        return _back(y, x.shape)

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, weight, mean, invstd = ctx.saved_tensors
        dx, dweight, dbias = _gradients(_rows(dy), _rows(x), weight, mean, invstd)
        return _back(dx, x.shape), dweight, dbias, None


class HelionBatchNorm(nn.BatchNorm1d):
    """In training, of a matrix or a tensor whose channels are innermost; running statistics are left alone."""

    def forward(self, input: Tensor) -> Tensor:
        return _BatchNorm.apply(input, self.weight, self.bias, self.eps)
