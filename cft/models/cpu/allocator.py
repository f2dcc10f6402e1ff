"""Keeps memory that torch frees in the process for the next tensor, instead of returning it to the system.

By default glibc returns every large block at once, so that the next tensor of that size is mapped and zeroed page by page
again: 1.11 times the time of a forward pass over 1,024 tokens of SmolLM2 (`make bench-annotate`, `allocator_speedup`).
Has no effect without glibc.
"""

from __future__ import annotations

import ctypes
import gc
import sys

# malloc.h of glibc
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Returns True if the allocator accepted the settings. The process then keeps its peak memory until it ends."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def give_back_freed_memory() -> None:
    """Return unused memory to the system; for a process that runs several tasks in sequence."""
    gc.collect()
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
