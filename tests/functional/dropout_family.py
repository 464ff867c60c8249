"""Every kind of dropout, as the tests call it, and what torch would compute with fastreg's mask, in any dtype."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fastreg import functional as F
from fastreg import reference

ALPHA = 1.7580993408473766


def inverted(x, keep, p):
    return x * keep.to(x.dtype).div(1 - p)


def unscaled(x, keep, p):
    return x * keep.to(x.dtype)


def alpha(x, keep, p):
    """ATen's _dropout_impl: the noise b is added."""
    a = 1 / ((ALPHA * ALPHA * p + 1) * (1 - p)) ** 0.5
    noise = keep.to(x.dtype)
    return x * (noise * a) + noise.add(-1).mul(ALPHA * a).add(ALPHA * a * p)


@dataclass(frozen=True)
class Kind:
    function: Callable
    shape: tuple[int, ...]  # one that it takes
    dims: int | None = None  # how many leading dimensions are counted; None: elements are
    formula: Callable = inverted
    keywords: dict = field(default_factory=dict)

    def __call__(self, x, p, state, inplace=False, **keywords):
        return self.function(x, p, True, inplace, rng_state=state, **self.keywords, **keywords)

    def keep(self, x, p, state):
        """Which elements of x are kept, by the reference alone: bool, of x's shape, contiguous."""
        state = state.cpu()
        if self.dims is None:
            stride = torch.empty_like(x).stride()
            return reference.dropout.keep_mask(x.numel(), p, state).as_strided(x.shape, stride).contiguous()
        leading = x.shape[: self.dims]
        keep = reference.dropout.keep_mask(leading.numel(), p, state)
        return keep.view(*leading, *[1] * (x.dim() - self.dims)).expand(x.shape).contiguous()

    def torchs(self, x, p, state):
        """torch's formula with fastreg's mask."""
        return self.formula(x, self.keep(x, p, state).to(x.device), p)


KINDS = {
    "dropout": Kind(F.dropout, (4, 3, 5, 7)),
    "dropout unscaled": Kind(F.dropout, (4, 3, 5, 7), formula=unscaled, keywords={"scaling": "test"}),
    "alpha_dropout": Kind(F.alpha_dropout, (4, 3, 5, 7), formula=alpha),
    "dropout1d": Kind(F.dropout1d, (4, 30, 7), 2),
    "dropout1d of one sample": Kind(F.dropout1d, (30, 7), 1),
    "dropout2d": Kind(F.dropout2d, (4, 30, 5, 7), 2),
    "dropout2d unscaled": Kind(F.dropout2d, (4, 30, 5, 7), 2, formula=unscaled, keywords={"scaling": "test"}),
    "dropout3d": Kind(F.dropout3d, (4, 30, 2, 3, 2), 2),
    "dropout3d of one sample": Kind(F.dropout3d, (30, 2, 3, 2), 1),
    "feature_alpha_dropout": Kind(F.feature_alpha_dropout, (4, 30, 5, 7), 2, formula=alpha),
    "drop_path": Kind(F.drop_path, (40, 6, 3), 1),
    "drop_path of images": Kind(F.drop_path, (40, 6, 3, 2), 1),
}
