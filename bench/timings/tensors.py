"""What charts and tables make of the columns of a row."""

from __future__ import annotations

import math

import torch

from bench.timings.cases import CASE_COLUMNS

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
MODES = {"both": "forward + backward", "graph": "forward + backward, CUDA graph"}


def label(row: dict) -> str:
    """32x64x56x56  fp32  channels-last"""
    return f"{row['shape']}  {DTYPES[row['dtype']]}{'  channels-last' * (row['layout'] == 'channels_last')}"


def size(row: dict) -> int:
    """Bytes of the input."""
    return math.prod(map(int, row["shape"].split("x"))) * getattr(torch, row["dtype"]).itemsize


def tensor(row: dict) -> tuple[str, ...]:
    """Operator, shape, dtype and layout."""
    return tuple(row[column] for column in CASE_COLUMNS if column != "mode")


def with_unit(count: float) -> str:
    """1536 -> 1.5 KiB"""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
