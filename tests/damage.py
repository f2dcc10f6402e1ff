"""Damages files, and compares tables of rows that should be equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cft.types import AnnotatedResponse


def same(a: Sequence[AnnotatedResponse], b: Sequence[AnnotatedResponse], *, atol: float = 0.0) -> None:
    """Compare all rows and columns; only log-probs and entropies may differ, by atol."""
    assert [r.response_id for r in a] == [r.response_id for r in b]
    for left, right in zip(a, b, strict=True):
        for f in dataclasses.fields(AnnotatedResponse):
            x, y = getattr(left, f.name), getattr(right, f.name)
            if isinstance(x, np.ndarray):
                assert x.dtype == y.dtype, f.name
                assert x.shape == y.shape, f.name
                exact = x.dtype.kind != "f" or atol == 0
                np.testing.assert_array_equal(x, y) if exact else np.testing.assert_allclose(x, y, rtol=0, atol=atol)
            else:
                assert x == y, f.name


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])
