"""Comparisons of floating-point results that hold on every processor.

Two computations of the same numbers (rows packed or padded, one process or two, chunks or the whole) are compared in
float64: there rounding is 1e-13 of the largest entry, a mistake 1e-2. A float32 kernel is held against float64, within a few
times the error that torch's own float32 products have in the same test: what another vector unit or library rounds
differently moves both. Bit-equality is for runs of the same shapes on the same machine alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

ROUNDING = 1e-10  # of the largest entry, in float64: a thousand times what sums in another order differ by
STORED = float(torch.finfo(torch.float32).eps)  # of a value that is kept in float32
FEW = 4.0  # times torch's own error: the largest of many roundings differs by two between two orders of summation


@contextmanager
def float64() -> Iterator[None]:
    """Inside, what is of float64 stays so: models cast to float32 in their norms, rotary angles and softmax whatever their
    weights are, which would leave rounding of 1e-7 in what is meant to be exact. Weights are the caller's: `.double()`."""
    to, narrow, softmax = Tensor.to, Tensor.float, torch.nn.functional.softmax

    def stays(x: Tensor, *args: Any, **options: Any) -> Tensor:
        if x.dtype != torch.float64:
            return to(x, *args, **options)
        wide = {name: _widened(value) for name, value in options.items()}
        return to(x, *map(_widened, args), **wide)

    def softmax_of(x: Tensor, *args: Any, **options: Any) -> Tensor:
        return softmax(x, *args, **{name: _widened(value) for name, value in options.items()})

    try:
        Tensor.to, Tensor.float, torch.nn.functional.softmax = stays, Tensor.double, softmax_of  # type: ignore[assignment]
        yield
    finally:
        Tensor.to, Tensor.float, torch.nn.functional.softmax = to, narrow, softmax  # type: ignore[method-assign]


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def float64_training() -> Iterator[None]:
    """The same, and what Lightning keeps of logged numbers, which is of the default dtype. Models made inside would be
    drawn from other random numbers."""
    before = torch.get_default_dtype()
    with float64():
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def error(found: Tensor, exact: Tensor) -> float:
    """The largest difference, of the largest entry."""
    assert found.shape == exact.shape
    assert bool(torch.isfinite(found).all())
    return float((found.double() - exact.double()).abs().max() / exact.double().abs().max())


def assert_same(found: Tensor | float, expected: Tensor | float) -> None:
    """The same numbers computed in two ways in float64."""
    one, other = (
        torch.as_tensor(x) if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64) for x in (found, expected)
    )
    assert one.dtype == other.dtype == torch.float64
    assert error(one, other) < ROUNDING


Measured = tuple[Tensor, ...]


def assert_as_exact_as_torch(found: Measured, torchs: Measured, exact: Measured) -> None:
    """Results of one computation by a float32 kernel, by torch in float32, and in float64. Where a single number is off by
    less than the rest, that is luck: the bound is torch's largest error over all of them."""
    assert {x.dtype for x in exact} == {torch.float64}
    assert {x.dtype for x in (*found, *torchs)} == {torch.float32}
    own = max(error(x, y) for x, y in zip(torchs, exact, strict=True))
    assert 0.0 < own < 1e-4  # else the computation at hand rounds nothing, or is no float32 computation
    for x, y in zip(found, exact, strict=True):
        assert error(x, y) <= FEW * own
