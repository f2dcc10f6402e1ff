"""Normalizers: the divisors of the loss's sums.

    critical   eligible tokens (static weight other than 0 under this arm's mask)
    response   all response tokens
    sequence   rows with an eligible token; each token has weight 1 / (eligible tokens of its row), unless the aggregation
               uses sums over rows
    problem    groups of rows that a loss compares (`cft/losses/group.py`)

Counts are known before the forward pass (`TokenBatch.step_counts`); only the training module divides (`TermSum.mean`).
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
    """The sum of one term of the loss over a micro-batch.

    Args:
        sum: scalar with gradient.
        count: this batch's contribution to the divisor.
        of: the divisor.
        coefficient: factor of the term.
    """

    sum: Tensor
    count: int
    of: Divisor
    coefficient: float

    def mean(self, counts: StepCounts) -> Tensor:
        """The term's contribution to the step's loss, including the coefficient."""
        return self.sum * (self.coefficient / max(1, getattr(counts, self.of)))
