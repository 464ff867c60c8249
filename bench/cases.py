"""What is timed: operator, direction, shape, dtype and memory layout, and the bytes that each case has to move."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

# Reads and writes of a whole tensor that cannot be avoided. Masks, statistics and parameters are not counted.
_DROPOUT_ACCESSES = {"forward": 2, "backward": 2, "both": 4}  # x to y, dy to dx
_BATCH_NORM_ACCESSES = {"forward": 2, "backward": 3, "both": 5, "evaluation": 2}  # backward reads x and dy
ACCESSES = {
    "dropout": _DROPOUT_ACCESSES,
    "dropout2d": _DROPOUT_ACCESSES,
    "alpha_dropout": _DROPOUT_ACCESSES,
    "batch_norm": _BATCH_NORM_ACCESSES,
}
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    op: str
    direction: str  # forward, backward, both: in training mode; evaluation: forward in evaluation mode
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def tensor_bytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def necessary_bytes(self) -> int:
        return ACCESSES[self.op][self.direction] * self.tensor_bytes

    def describe(self) -> dict:
        """The columns that identify the case in the result files."""
        return {
            "op": self.op,
            "direction": self.direction,
            "shape": "x".join(map(str, self.shape)),
            "dtype": str(self.dtype).removeprefix("torch."),
            "layout": self.layout,
        }


def cases(quick: bool = False) -> list[Case]:
    """All cases, ordered by operator, dtype and size; `quick` keeps the few that show whether everything runs."""
    fp32, bf16 = torch.float32, torch.bfloat16
    if quick:
        tensors = [
            ("dropout", (32, 100), fp32, "contiguous"),
            ("batch_norm", (32, 100), fp32, "contiguous"),
            ("batch_norm", (8, 16, 14, 14), bf16, "channels_last"),
        ]
    else:
        images = [(128, 256, 14, 14), (32, 64, 56, 56), (64, 64, 56, 56)]
        tensors = [
            *(("dropout", shape, fp32, "contiguous") for shape in [(32, 100), (65536,), (1024, 256), (1048576,)]),
            ("dropout", (64, 64, 56, 56), fp32, "channels_last"),
            ("dropout", (16777216,), fp32, "contiguous"),
            ("dropout", (1048576,), bf16, "contiguous"),
            *(("dropout2d", (32, 64, 56, 56), fp32, layout) for layout in MEMORY_FORMATS),
            *(("alpha_dropout", (32, 64, 56, 56), fp32, layout) for layout in MEMORY_FORMATS),
            *(("batch_norm", shape, fp32, "contiguous") for shape in [(32, 100), (1024, 256)]),
            *(("batch_norm", shape, fp32, layout) for shape in images for layout in MEMORY_FORMATS),
            *(("batch_norm", (32, 64, 56, 56), bf16, layout) for layout in MEMORY_FORMATS),
        ]
    return [
        Case(op, direction, shape, dtype, layout) for op, shape, dtype, layout in tensors for direction in ACCESSES[op]
    ]
