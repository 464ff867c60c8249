"""What is timed: operator, mode, shape, dtype and memory layout; which of them by default and which by choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.timings import default, shapes
from bench.timings.default import DTYPES, LAYOUTS, Tensor
from bench.timings.ops import MODES, OPS, Op

CASE_COLUMNS = ("op", "mode", "shape", "dtype", "layout")
LIVE_TENSORS = 8  # of the input's size that a step may have beside its pool of inputs, whoever's step it is


@dataclass(frozen=True)
class Case:
    """mode: forward, backward, both: in training mode; evaluation: forward; graph: both, as a replayed CUDA graph."""

    op: str
    mode: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"

    @property
    def definition(self) -> Op:
        return OPS[self.op]

    @property
    def tensor_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def fits(self, memory: int) -> bool:
        """Whether so many bytes are enough to time it."""
        return self.tensor_bytes * (4 * (1 + self.definition.residual) + LIVE_TENSORS) <= memory

    @property
    def necessary_bytes(self) -> int:
        return self.definition.accesses[self.mode] * self.tensor_bytes

    @property
    def memory_format(self) -> torch.memory_format:
        if self.layout == "contiguous":
            return torch.contiguous_format
        return torch.channels_last if len(self.shape) == 4 else torch.channels_last_3d

    def describe(self) -> dict:
        """The columns that identify the case in the result files."""
        return {
            "op": self.op,
            "mode": self.mode,
            "shape": "x".join(map(str, self.shape)),
            "dtype": str(self.dtype).removeprefix("torch."),
            "layout": self.layout,
        }

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(self.describe().values())


def key(row: dict) -> tuple[str, ...]:
    """The case that a row of the results is of."""
    return tuple(row[column] for column in CASE_COLUMNS)


@dataclass(frozen=True)
class Choice:
    """What to time; None: the default set's."""

    ops: Sequence[str] | None = None
    modes: Sequence[str] | None = None
    shapes: Sequence[str] | None = None
    dtypes: Sequence[str] | None = None
    layouts: Sequence[str] | None = None
    more: bool = False  # than the default set

    def cases(self, device: torch.device, memory: int, quick: bool = False) -> tuple[list[Case], list[Case]]:
        """(cases, cases left out because they need more than `memory` bytes), by operator, dtype, shape and mode.

        Raises:
            ValueError: nothing is left to time.
        """
        modes = [mode for mode in self.modes or MODES if device.type == "cuda" or mode != "graph"]
        found = [
            Case(op, mode, shape, dtype, layout)
            for op, shape, dtype, layout in self._tensors(device, quick)
            for mode in modes
            if mode in OPS[op].accesses
        ]
        fitting = [case for case in found if case.fits(memory)]
        if not fitting:
            reason = "all need more memory than there is" if found else "no operator takes such tensors in such a mode"
            raise ValueError(f"--ops, --modes, --shapes, --dtypes and --layouts must leave something to time: {reason}")
        return fitting, [case for case in found if case not in set(fitting)]

    def _tensors(self, device: torch.device, quick: bool) -> list[Tensor]:
        usual = default.QUICK if quick else default.DEFAULT[device.type]
        if self.more and not quick:
            usual = [*usual, *(tensor for tensor in default.MORE if tensor not in usual)]
        if not (self.shapes or self.dtypes or self.layouts):
            return [tensor for tensor in usual if self.ops is None or tensor[0] in self.ops]
        tensors = []
        for op in self.ops or dict.fromkeys(tensor[0] for tensor in usual):
            for dtype in (DTYPES[name] for name in self.dtypes or ["fp32"]):
                if self.shapes:
                    sizes = shapes.named(self.shapes, dtype.itemsize)
                else:
                    sizes = dict.fromkeys(tensor[1] for tensor in usual if tensor[0] == op)
                tensors += [(op, shape, dtype, layout) for shape in sizes for layout in self.layouts or LAYOUTS[:1]]
        return [tensor for tensor in tensors if _exists(*tensor)]


def _exists(op: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> bool:
    return len(shape) in OPS[op].ranks and (layout == "contiguous" or len(shape) in (4, 5))
