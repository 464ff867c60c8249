"""The default set: what networks use, small and large; five minutes on two cores."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = ("contiguous", "channels_last")
Tensor = tuple[str, tuple[int, ...], torch.dtype, str]  # operator, shape, dtype, layout


def _parse(table: str) -> list[Tensor]:
    """A line per operator: its shapes, dtypes and layouts, each with each."""
    tensors = []
    for line in table.strip().splitlines():
        op, *shapes, dtypes, layouts = line.split()
        for dtype in dtypes.split(","):
            for shape in shapes:
                size = tuple(map(int, shape.split("x")))
                tensors += [(op, size, DTYPES[dtype], layout) for layout in layouts.split(",")]
    return tensors


_BOTH = ",".join(LAYOUTS)
_CPU = f"""
dropout 32x100 65536 1048576 16777216 fp32 contiguous
dropout 1048576 bf16 contiguous
dropout2d 32x64x56x56 fp32 {_BOTH}
alpha_dropout 32x64x56x56 fp32 contiguous
drop_path 32x64x56x56 fp32 contiguous
relu_dropout 1024x256 8x512x768 fp32 contiguous
batch_norm 32x100 1024x256 fp32 contiguous
batch_norm 128x256x14x14 32x64x56x56 64x64x56x56 fp32 {_BOTH}
batch_norm 32x64x56x56 bf16 {_BOTH}
batch_norm_relu 32x64x56x56 fp32 {_BOTH}
batch_norm_add_relu 32x64x56x56 fp32 {_BOTH}
batch_norm_relu_dropout 1024x256 fp32 contiguous
batch_norm_relu_dropout 128x256x14x14 32x64x56x56 fp32 {_BOTH}
"""
_CUDA = f"""
dropout 32x100 65536 1048576 16777216 268435456 fp32,bf16 contiguous
dropout2d 256x256x56x56 bf16 {_BOTH}
alpha_dropout 16777216 bf16 contiguous
drop_path 64x197x768 bf16 contiguous
relu_dropout 1024x256 8x512x3072 bf16 contiguous
batch_norm 32x100 1024x256 8192x4096 fp32 contiguous
batch_norm 256x64x112x112 256x256x56x56 256x512x28x28 256x1024x14x14 256x2048x7x7 fp32,bf16 {_BOTH}
batch_norm 2x32x128x128x128 bf16 contiguous
batch_norm_relu 256x64x112x112 256x128x28x28 bf16 {_BOTH}
batch_norm_add_relu 256x256x56x56 256x1024x14x14 bf16 {_BOTH}
batch_norm_relu_dropout 1024x256 fp32 contiguous
batch_norm_relu_dropout 32x64x56x56 128x256x14x14 256x256x56x56 bf16 {_BOTH}
"""
DEFAULT = {"cpu": _parse(_CPU), "cuda": _parse(_CUDA)}
# Each fused operator in 16 bits, a small batch, sequences and volumes.
MORE = _parse(f"""
dropout 16777216 bf16,fp16 contiguous
relu_dropout 1024x256 8x512x768 bf16,fp16 contiguous
drop_path 32x64x56x56 bf16,fp16 contiguous
batch_norm 1024x256 bf16,fp16 contiguous
batch_norm 32x256x1024 fp32,bf16 contiguous
batch_norm 8x64x56x56 fp32,bf16,fp16 {_BOTH}
batch_norm 2x32x32x64x64 fp32,bf16 {_BOTH}
batch_norm_relu 1024x256 32x256x1024 fp32,bf16 contiguous
batch_norm_relu 8x64x56x56 fp32,bf16,fp16 {_BOTH}
batch_norm_relu 32x64x56x56 bf16,fp16 {_BOTH}
batch_norm_relu 2x32x32x64x64 fp32,bf16 {_BOTH}
batch_norm_add_relu 8x64x56x56 fp32,bf16,fp16 {_BOTH}
batch_norm_add_relu 32x64x56x56 bf16,fp16 {_BOTH}
batch_norm_relu_dropout 1024x256 bf16,fp16 contiguous
batch_norm_relu_dropout 8x64x56x56 fp32,bf16,fp16 {_BOTH}
""")
# One of each kind: does everything run?
QUICK = _parse("""
dropout 32x100 fp32 contiguous
batch_norm 32x100 fp32 contiguous
batch_norm 8x16x14x14 bf16 channels_last
batch_norm_add_relu 8x16x14x14 fp32 contiguous
""")
