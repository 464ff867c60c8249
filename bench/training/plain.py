"""What fastreg.nn has, under the same names, in torch's own layers and functions: the side to compare with."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import BatchNorm1d
from torch.nn import functional as F

__all__ = ["BatchNorm1d", "DropConnectLinear", "Dropout"]


def Dropout(p: float = 0.5, *, scaling: str = "train") -> nn.Module:
    """torch's, or with `scaling="test"` the original form: unscaled in training, times 1 - p in evaluation."""
    return nn.Dropout(p) if scaling == "train" else _OriginalDropout(p)


class _OriginalDropout(nn.Dropout):
    """Srivastava et al. 2014. torch's functions know the other scaling only, so this undoes it."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (1 - self.p)


class DropConnectLinear(nn.Linear):
    """A Linear layer whose weights are dropped, and not its outputs (Wan et al. 2013)."""

    def __init__(self, in_features: int, out_features: int, p: float = 0.5):
        super().__init__(in_features, out_features)
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, F.dropout(self.weight, self.p, self.training), self.bias)
