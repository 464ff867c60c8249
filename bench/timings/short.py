"""The short table: what is worth knowing first about a GPU, the most telling first, in about a minute and a half."""

from __future__ import annotations

from bench.timings.cases import Case
from bench.timings.default import DTYPES, LAYOUTS

OPS = ("batch_norm", "batch_norm_relu", "dropout")
DTYPE_ORDER = ("bf16", "fp32", "fp16")
SHAPES = ((256, 256, 56, 56), (256, 1024, 14, 14), (256, 64, 56, 56), (32, 64, 56, 56), (1024, 256), (32, 100))
PROVIDERS = ("torch", "torch_without_cudnn", "compile", "fastreg")
SECONDS = 0.3  # a case, at most, what is prepared once included
# Forward and backward together, for torch.compile, which takes seconds for each to compile.
COMPILED = [
    Case("batch_norm", "both", SHAPES[0], DTYPES["bf16"]),
    Case("batch_norm_relu", "both", SHAPES[0], DTYPES["bf16"], "channels_last"),
    Case("batch_norm_relu", "both", SHAPES[1], DTYPES["fp32"]),
]


def cases(quick: bool = False) -> list[Case]:
    """Forward and backward of each operator, type, shape and layout; the compiled ones follow the first type's.

    quick: the smallest tensor of one type."""
    found = []
    for dtype in DTYPE_ORDER[:1] if quick else DTYPE_ORDER:
        for shape in SHAPES[-1:] if quick else SHAPES:
            for layout in LAYOUTS if len(shape) == 4 else LAYOUTS[:1]:
                tensor = shape, DTYPES[dtype], layout
                found += [Case(op, mode, *tensor) for op in OPS for mode in ("forward", "backward")]
        if dtype == DTYPE_ORDER[0] and not quick:
            found += COMPILED
    return found
