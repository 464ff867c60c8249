"""What was called of torch's patched operators: from where, taken over or left to torch, and what that saved."""

import os
import sys
from collections import Counter
from typing import NamedTuple

import torch

from fastreg import _extension, patching
from fastreg.composed_patch import NOTHING_DROPPED

_BATCH_NORM, _WITH_MASK = "batch_norm", "native_dropout"
_STATE_BYTES = 16
_OWN_FOLDERS = tuple(os.path.dirname(module.__file__) + os.sep for module in (torch, _extension))
_DTYPES = {"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16"}


class Site(NamedTuple):
    """What calls have in common. why_left: why they are left to torch, None where they are taken over."""

    op: str
    shape: str
    dtype: str
    where: str
    why_left: str | None


class Calls:
    """Counts calls while it is told of them.

    counts: of each :class:`Site`. mask_bytes: what torch would have kept of masks for backward passes, less the random
    states that are kept in their place.
    """

    def __init__(self):
        self.counts = Counter()
        self.mask_bytes = 0

    def start(self):
        patching.observe(self._count)

    def stop(self):
        patching.observe(None)

    def _count(self, op, shape, dtype, element_size, device, draws, records, why_left):
        self.counts[Site(op, shape, _DTYPES.get(dtype, dtype), source_line(), why_left)] += 1
        if why_left is None and records and op not in (_BATCH_NORM, _WITH_MASK):
            # On the CPU torch keeps what it multiplies by, as it does of features and alpha dropout on CUDA.
            kept = 1 if device.startswith("cuda") and op == "dropout" else element_size
            self.mask_bytes += max(draws * kept - _STATE_BYTES, 0)

    def __str__(self):
        taken = [site for site in self.counts if site.why_left is None]
        idle = [site for site in self.counts if site.why_left == NOTHING_DROPPED]
        left = [site for site in self.counts if site.why_left not in (None, NOTHING_DROPPED)]
        lines = [
            f"{self._total(taken)} calls taken over, {self._total(left)} left to torch, {self._total(idle)} with "
            f"nothing to drop; {_readable(self.mask_bytes)} of masks not stored"
        ]
        for title, sites in (("taken over", taken), ("left to torch", left)):
            lines += [f"  {title}:"] if sites else []
            for site in sorted(sites, key=lambda site: -self.counts[site]):
                why = f": {site.why_left}" if site.why_left else ""
                lines.append(f"{self.counts[site]:8}  {site.op} {site.shape} {site.dtype}  {site.where}{why}")
        return "\n".join(lines)

    def _total(self, sites):
        return sum(self.counts[site] for site in sites)


def _readable(count):
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024


def source_line():
    """The innermost line of Python that is neither torch's nor fastreg's."""
    frame = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith(_OWN_FOLDERS) and not path.startswith("<frozen"):
            return f"{_short(path)}:{frame.f_lineno}"
        frame = frame.f_back
    return "a thread of torch's own"


def _short(path):
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):  # no folder to be in, or another drive
        return path
    return path if relative.startswith(os.pardir) else relative
