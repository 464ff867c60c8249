"""The C library's allocator, told to keep what is freed.

By default glibc gives large blocks back to the system as they are freed, and takes new ones, whose pages are then
faulted in one by one. Whoever allocates more looks slower for it than in programs with another allocator, or with
malloc tuned, and less of what is timed is the layer.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, in malloc.h


def keep_freed_memory() -> bool:
    """For the whole process, from now on. Returns whether the allocator is one that can be told."""
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, 2**31 - 1))
