"""Shapes by the name of the network that they come from."""

from __future__ import annotations

import re
from collections.abc import Iterable

Shape = tuple[int, ...]

# What ResNet-50 normalises at 224 x 224, each shape once (He et al. 2016).
_RESNET50 = [
    *[(64, 112, 112), (64, 56, 56), (256, 56, 56), (128, 56, 56), (128, 28, 28), (512, 28, 28)],
    *[(256, 28, 28), (256, 14, 14), (1024, 14, 14), (512, 14, 14), (512, 7, 7), (2048, 7, 7)],
]
_UNET3D = [(2, channels, *(size,) * 3) for channels, size in ((32, 128), (64, 64), (128, 32), (256, 16), (320, 8))]
SWEEP = "sweep"
SWEEP_BYTES = [1 << exponent for exponent in range(10, 33, 2)]  # 1 KiB to 4 GiB

SETS: dict[str, list[Shape]] = {
    **{f"resnet50-{batch}": [(batch, *image) for image in _RESNET50] for batch in (32, 64, 256)},
    "unet3d": _UNET3D,  # an encoder of five levels on two patches of 128 x 128 x 128
    "mlp": [(32, 100), (128, 512), (1024, 256), (4096, 1024), (8192, 4096)],
    "transformer": [(8, 512, 768), (8, 512, 3072), (4, 2048, 4096)],  # hidden states, and what is between two linears
}


def named(names: Iterable[str], itemsize: int) -> list[Shape]:
    """The shapes of sets and of single shapes such as 32x64x56x56, each once.

    Raises:
        ValueError: neither.
    """
    shapes = []
    for name in names:
        check(name)
        if name == SWEEP:
            shapes += [sweep(size // itemsize) for size in SWEEP_BYTES]
        else:
            shapes += SETS.get(name) or [tuple(map(int, name.split("x")))]
    return list(dict.fromkeys(shapes))


def check(name: str) -> str:
    """Raises ValueError where it is neither a set nor a shape."""
    if name not in SETS and name != SWEEP and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", name):
        raise ValueError(f"must be one of {', '.join([*SETS, SWEEP])}, or sizes such as 32x64x56x56, got {name}")
    return name


def sweep(elements: int) -> Shape:
    """[N, 64, H, W] of a power of two of elements, from 256: what every operator of images takes."""
    exponent = elements.bit_length() - 1 - 6
    batch = min(5, (exponent + 1) // 2)
    height = (exponent - batch + 1) // 2
    return 1 << batch, 64, 1 << height, 1 << (exponent - batch - height)
