"""Dropout modules."""

import torch
from torch import Tensor

from fastreg import functional as F
from fastreg.nn.tracing import traced_call


class Dropout(torch.nn.Dropout):
    """Zeroes each element with probability p in training, and scales the others by 1 / (1 - p).

    In place of :class:`torch.nn.Dropout`; see :func:`fastreg.functional.dropout`.

    Args:
        p (float): probability of an element to be zeroed. Default: 0.5.
        inplace (bool): modify the input. Default: False.

    Shape:
        - input and output: any.

    Raises:
        ValueError: p is not in [0, 1].
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"Dropout: p must lie in [0, 1], got {p}")
        super().__init__(p, inplace)

    def forward(self, input: Tensor) -> Tensor:
        if (node := traced_call(self, input)) is not None:
            return node
        return F.dropout(input, self.p, self.training, self.inplace)
