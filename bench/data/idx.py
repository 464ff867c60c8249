"""IDX files (http://yann.lecun.com/exdb/mnist), packed or not, their content verified."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bench.data.sets import SETS, SIZES, DataSet

GZIP = b"\x1f\x8b"


def read(folder: Path, dataset: DataSet) -> dict[str, bytes]:
    """The unpacked content of all files of the set, by name; each lies as NAME or NAME.gz in `folder`.

    Raises:
        ValueError: a file is missing, damaged, or not the published one; the message names it.
        OSError: a file cannot be read.
    """
    paths = {name: find(folder, name) for name in dataset.files}
    if missing := [f"{name}[.gz]" for name, path in paths.items() if path is None]:
        raise ValueError(f"must be a folder with {', '.join(missing)}, got {folder} {_content(folder)}")
    return {name: verified(path.read_bytes(), name, dataset, path) for name, path in paths.items()}


def find(folder: Path, name: str) -> Path | None:
    """The file, packed or not, if it is there."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def verified(content: bytes, name: str, dataset: DataSet, source: Path | str) -> bytes:
    """The content of the set's file `name`, unpacked if it was packed.

    Raises:
        ValueError: it is not; the message tells what it is instead, as far as that can be told.
    """
    try:
        unpacked = _unpack(content, SIZES[name]) if content.startswith(GZIP) else content
        if hashlib.sha256(unpacked).hexdigest() == dataset.files[name]:
            return unpacked
        found = _describe(unpacked, name)
    except (OSError, EOFError, zlib.error) as error:
        found = f"a gzip file that is damaged ({error})"
    raise ValueError(f"{source}: must be {dataset.title}'s {name}, got {found}")


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


def _unpack(content: bytes, size: int) -> bytes:
    """A byte more than the size at most, for what unpacks to far more must not fill the memory."""
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        return file.read(size + 1)


def _describe(content: bytes, name: str) -> str:
    """What it is that should have been a set's file `name`."""
    checksum = hashlib.sha256(content).hexdigest()
    for dataset in SETS.values():
        for other, expected in dataset.files.items():
            if checksum == expected:
                return f"{dataset.title}'s {other}"
    if content.lstrip()[:1] == b"<":
        return f"a page of HTML ({len(content)} bytes)"
    if len(content) != SIZES[name]:
        longer = "a longer one" if len(content) > SIZES[name] else f"{len(content)} bytes: truncated, or other data"
        return f"{longer}, where {SIZES[name]} bytes are right"
    return f"other content, of SHA-256 {checksum}"


def _content(folder: Path) -> str:
    if not folder.is_dir():
        return "which is no folder" if folder.exists() else "which is not there"
    names = sorted(path.name for path in folder.iterdir())
    return f"with {_some(names)}" if names else "which is empty"


def _some(names: Iterable[str], limit: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + f" and {len(names) - limit} more" * (len(names) > limit)
