"""Freed memory: kept for the next tensor, given back on request."""

from __future__ import annotations

import subprocess
import sys

import pytest

RESIDENT = """
import gc, torch
from cft.models.cpu.allocator import give_back_freed_memory, keep_freed_memory
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1000
assert keep_freed_memory()
before = resident()
tensors = [torch.ones(1000, 1000) for _ in range(100)]  # 400 MB
held = resident()
del tensors
gc.collect()
kept = resident()
give_back_freed_memory()
print(held - before, kept - before, resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    held, kept, left = map(float, done.stdout.split())
    assert held > 380
    assert kept > 380
    assert left < 40
