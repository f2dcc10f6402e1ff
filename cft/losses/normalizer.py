"""What the sums of the loss are divided by.

    critical   eligible tokens (static weight other than 0 under this arm's mask)
    response   all response tokens
    sequence   rows with an eligible token; each token then weighs 1 / (eligible tokens of its row), unless the aggregation
               is of sums over rows
    problem    groups of rows that a loss compares (`cft/losses/group.py`)

Counts are known before anything is computed (`TokenBatch.step_counts`); only the module divides (`TermSum.mean`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cft.types import StepCounts

Normalizer = Literal["critical", "response", "sequence", "problem"]
Divisor = Literal["eligible", "response", "critical", "other", "sequence", "problem"]  # fields of StepCounts

DIVISORS: dict[Normalizer, Divisor] = {
    "critical": "eligible",
    "response": "response",
    "sequence": "sequence",
    "problem": "problem",
}


@dataclass(frozen=True, slots=True)
class TermSum:
    """sum: scalar with gradient. count: how much this batch holds of what the term is divided by. of: what that is."""

    sum: Tensor
    count: int
    of: Divisor
    coefficient: float

    def mean(self, counts: StepCounts) -> Tensor:
        """What the term adds to the step's loss, coefficient included."""
        return self.sum * (self.coefficient / max(1, getattr(counts, self.of)))
