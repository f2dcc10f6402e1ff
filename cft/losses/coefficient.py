"""A coefficient that may change during training."""

from __future__ import annotations

import math
from typing import Literal

from cft.ranges import AtLeastZero, in_range


class Coefficient:
    """A factor that changes from `initial` to `final` over the run.

    Args:
        initial: value at the first optimizer step, at least 0. To reverse a term's sign, use another term.
        final: value at the last optimizer step, at least 0; ignored if `shape` is constant.
        shape: constant, linear or cosine, as a function of the fraction of optimizer steps done.
    """

    @in_range
    def __init__(
        self, *, initial: AtLeastZero, final: AtLeastZero, shape: Literal["constant", "linear", "cosine"]
    ) -> None:
        self.initial, self.final, self.shape = initial, final, shape

    def __call__(self, progress: float) -> float:
        """progress: fraction of the optimizer steps that are done, 0-1."""
        if self.shape == "constant":
            return self.initial
        done = progress if self.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return self.initial + (self.final - self.initial) * done
