"""Memory that torch frees is kept for the next tensor instead of going back to the system.

glibc gives every large block back at once, so that the next tensor of that size is fetched and zeroed page by page
again: 1.11 times the time of a forward pass over 1,024 tokens of SmolLM2 (`make bench-annotate`, `allocator_speedup`).
Without glibc nothing happens.
"""

from __future__ import annotations

import ctypes
import gc
import sys

# malloc.h of glibc
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """True if the allocator took the settings. The process then holds its peak until it ends."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def give_back_freed_memory() -> None:
    """For a process that does several things one after the other: what none of them holds any more goes to the system."""
    gc.collect()
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
