"""The operators: each as torch's layers, one after the other, and as fastreg's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

import fastreg

P = 0.5
ANY = tuple(range(1, 6))
BATCHED = tuple(range(2, 6))
Build = Callable[[tuple[int, ...]], nn.Module]


@dataclass(frozen=True)
class Op:
    """torch, fastreg: make the layer for a shape; it is called with the input and, if there is one, the residual.

    accesses: whole tensors that must be read or written, by mode. Masks, statistics and parameters are not counted."""

    torch: Build
    fastreg: Build
    forward: int
    backward: int
    evaluated: bool = False  # does something in evaluation mode
    ranks: tuple[int, ...] = ANY
    residual: bool = False

    @property
    def accesses(self) -> dict[str, int]:
        both = self.forward + self.backward
        accesses = {"forward": self.forward, "backward": self.backward, "both": both}
        return accesses | ({"evaluation": self.forward} if self.evaluated else {}) | {"graph": both}


class DropPath(nn.Module):
    """Stochastic depth as models write it: a random factor per sample, then the sum."""

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:
        keep = input.new_empty((len(input),) + (1,) * (input.dim() - 1)).bernoulli_(1 - P)
        return residual + input * keep.div_(1 - P)


class BatchNormAddReLU(nn.Module):
    """The end of a residual block, in place where the blocks of torchvision are."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:
        output = self.norm(input)
        output += residual
        return output.relu_()


def _norm(layers, shape: tuple[int, ...], suffix: str = "", **keywords) -> nn.Module:
    kind = getattr(layers, f"BatchNorm{suffix}{max(len(shape) - 2, 1)}d")
    return kind(shape[1], **keywords)


def _dropouts(name: str, ranks: tuple[int, ...] = ANY) -> Op:
    builds = [lambda shape, layers=layers: getattr(layers, name)(P) for layers in (nn, fastreg.nn)]
    return Op(*builds, forward=2, backward=2, ranks=ranks)  # x to y, dy to dx


def _fused(p: float = 0.0, residual: bool = False) -> Op:
    """Backward reads x and dy; the gradient of the sum is a result beside dx. Bits of a gate are not counted."""

    def torch_layers(shape):
        norm = _norm(nn, shape)
        if residual:
            return BatchNormAddReLU(norm)
        return nn.Sequential(norm, nn.ReLU(inplace=True), *[nn.Dropout(p)] * (p > 0))

    def fused_layer(shape):
        return _norm(fastreg.nn, shape, "Act", act="relu", drop=p)

    extra = int(residual)
    return Op(torch_layers, fused_layer, 2 + extra, 3 + extra, evaluated=True, ranks=BATCHED, residual=residual)


OPS: dict[str, Op] = {
    "dropout": _dropouts("Dropout"),
    "dropout1d": _dropouts("Dropout1d", ranks=(3,)),
    "dropout2d": _dropouts("Dropout2d", ranks=(4,)),
    "dropout3d": _dropouts("Dropout3d", ranks=(5,)),
    "alpha_dropout": _dropouts("AlphaDropout"),
    "feature_alpha_dropout": _dropouts("FeatureAlphaDropout", ranks=BATCHED),
    "drop_path": Op(  # x and the residual to y; dy to dx, and dy itself is the residual's gradient
        lambda shape: DropPath(), lambda shape: fastreg.nn.DropPath(P), forward=3, backward=2, residual=True
    ),
    "batch_norm": Op(
        lambda shape: _norm(nn, shape),
        lambda shape: _norm(fastreg.nn, shape),
        forward=2,
        backward=3,
        evaluated=True,
        ranks=BATCHED,
    ),
    "batch_norm_relu": _fused(),
    "batch_norm_relu_dropout": _fused(P),
    "batch_norm_add_relu": _fused(residual=True),
    "relu_dropout": Op(
        lambda shape: nn.Sequential(nn.ReLU(), nn.Dropout(P)),
        lambda shape: fastreg.nn.ActDropout("relu", P),
        forward=2,
        backward=3,
    ),
}
MODES = tuple(OPS["batch_norm"].accesses)
