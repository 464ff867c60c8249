"""MNIST and Fashion-MNIST from IDX files (http://yann.lecun.com/exdb/mnist), packed or not, checksums verified."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

# MD5 of each file: packed, as published, and unpacked.
Checksums = Mapping[str, tuple[str, str]]
MNIST: Checksums = {
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}
FASHION_MNIST: Checksums = {
    "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
    "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
    "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
    "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
}


def load(folder: Path, checksums: Checksums) -> list[np.ndarray]:
    """The arrays of all files in `checksums`, in its order; each file as NAME or NAME.gz in `folder`.

    Raises:
        ValueError: a file is missing, damaged, or not the published one; the message names it.
    """
    paths = {name: _find(folder, name) for name in checksums}
    if missing := [f"{name}[.gz]" for name, path in paths.items() if path is None]:
        raise ValueError(f"--data must be a folder with {', '.join(missing)}, got {folder} without")
    arrays = []
    for name, path in paths.items():
        content = path.read_bytes()
        packed = path.suffix == ".gz"
        expected, actual = checksums[name][0 if packed else 1], hashlib.md5(content, usedforsecurity=False).hexdigest()
        if actual != expected:
            raise ValueError(f"{path}: MD5 must be the published {expected}, got {actual}: damaged, or other data")
        arrays.append(parse(_unpack(content, path) if packed else content, path))
    return arrays


def parse(content: bytes, source: Path | str = "IDX file") -> np.ndarray:
    """Array of unsigned bytes. Header: 0, 0, 8 for unsigned bytes, dimensions, and each one's size in 4 bytes.

    Raises:
        ValueError: the header is another one, or the size is not the one it promises.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08" or content[3] == 0:
        raise ValueError(f"{source}: header must begin with 00 00 08 and a rank from 1, got {content[:4].hex(' ')}")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise ValueError(f"{source}: header must have {header} bytes, got {len(content)}: truncated")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if len(content) != header + math.prod(shape):
        size = header + math.prod(shape)
        raise ValueError(f"{source}: must have {size} bytes for shape {shape}, got {len(content)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _unpack(content: bytes, path: Path) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: must be a whole gzip file, got one that is damaged ({error})") from None
