"""Comparisons of floating-point results that hold on every processor.

Two computations of the same numbers (packed or padded rows, one rank or two, chunks or the whole) are compared in float64,
where rounding is 1e-13 of the largest entry and a bug 1e-2. A float32 kernel is compared with float64, with a tolerance of a
few times the error of torch's float32 products in the same test, because another vector unit or library changes the rounding
of both. Bit equality is required only of runs with the same shapes on the same machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

ROUNDING = 1e-10  # relative to the largest entry, in float64: a thousand times the effect of another summation order
STORED = float(torch.finfo(torch.float32).eps)  # relative error of a value stored in float32
FEW = 4.0  # times torch's error: the largest rounding error varies by a factor of two with the summation order


@contextmanager
def float64() -> Iterator[None]:
    """Context in which float64 tensors stay float64.

    Models cast to float32 in norms, rotary angles and softmax regardless of their weights, which would leave rounding errors
    of 1e-7. The caller converts the weights with `.double()`.
    """
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
    """Like `in_float64`, and also for logged numbers, which Lightning stores in the default dtype.

    Models created inside would be initialized with different random numbers.
    """
    before = torch.get_default_dtype()
    with float64():
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def error(found: Tensor, exact: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    assert found.shape == exact.shape
    assert bool(torch.isfinite(found).all())
    return float((found.double() - exact.double()).abs().max() / exact.double().abs().max())


def assert_same(found: Tensor | float, expected: Tensor | float) -> None:
    """Compare the same numbers computed in two ways in float64."""
    one, other = (
        torch.as_tensor(x) if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64) for x in (found, expected)
    )
    assert one.dtype == other.dtype == torch.float64
    assert error(one, other) < ROUNDING


Measured = tuple[Tensor, ...]


def assert_as_exact_as_torch(found: Measured, torchs: Measured, exact: Measured) -> None:
    """Compare results of a float32 kernel, of torch in float32, and in float64.

    The bound is torch's largest error over all of the results, because a single number may be accurate by chance.
    """
    assert {x.dtype for x in exact} == {torch.float64}
    assert {x.dtype for x in (*found, *torchs)} == {torch.float32}
    own = max(error(x, y) for x, y in zip(torchs, exact, strict=True))
    assert 0.0 < own < 1e-4  # otherwise the computation does not round, or is not in float32
    for x, y in zip(found, exact, strict=True):
        assert error(x, y) <= FEW * own
