"""Schedules against values worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import pytest

from cft.losses.coefficient import Coefficient

QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
HALF_ROOT = math.sqrt(0.5) / 2  # half of cos(pi / 4)
PATHS: dict[Literal["constant", "linear", "cosine"], tuple[float, ...]] = {
    "constant": (0.0, 0.0, 0.0, 0.0, 0.0),
    "linear": (0.0, 0.25, 0.5, 0.75, 1.0),
    "cosine": (0.0, 0.5 - HALF_ROOT, 0.5, 0.5 + HALF_ROOT, 1.0),
}


@pytest.mark.parametrize("shape", PATHS)
@pytest.mark.parametrize(("initial", "final"), [(0.1, 0.5), (0.9, 0.0), (0.3, 0.3)])
def test_from_initial_to_final(shape: Literal["constant", "linear", "cosine"], initial: float, final: float) -> None:
    """The share of the way that is gone after each quarter of the run."""
    coefficient = Coefficient(initial=initial, final=final, shape=shape)
    found = [coefficient(progress) for progress in QUARTERS]
    assert found == pytest.approx([(1 - gone) * initial + gone * final for gone in PATHS[shape]], abs=1e-15)


def test_cosine_begins_and_ends_slowly_and_never_turns_back() -> None:
    coefficient = Coefficient(initial=0.0, final=1.0, shape="cosine")
    path = [coefficient(step / 100) for step in range(101)]
    steps = [after - before for before, after in pairwise(path)]
    assert min(steps) > 0
    assert steps[0] == pytest.approx(steps[-1])
    assert steps[0] < max(steps) / 20
    assert steps.index(max(steps)) in (49, 50)
