"""What the commands' arguments have in common."""

from __future__ import annotations

import argparse
import math

from bench.timings import shapes


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text}")
    return int(text)


def factor(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def shape_name(text: str) -> str:
    """A set of shapes, or sizes joined by x."""
    try:
        return shapes.check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
