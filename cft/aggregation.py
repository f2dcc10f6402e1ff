"""Aggregation: token losses of whole rows -> one sum. What the sum is divided by is the normaliser's business.

TokenMean       sum_n w_n l_n                 (divided by tokens, or, per sequence, by the row's tokens and by rows)
WorstGroup      SFT-GO (arXiv 2506.15021)
SoftmaxGroups   SHAD + RFT (arXiv 2412.14780)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class WeightedLosses:
    """loss_N: token losses with gradient. weight_N: static times dynamic weight; under the `sequence` normaliser already
    divided by the eligible tokens of the token's row. row_N, num_rows: as in TokenScores. group_N: int64, 0 or 1; None
    where no groups were asked for."""

    loss_N: Tensor
    weight_N: Tensor
    row_N: Tensor
    num_rows: int
    group_N: Tensor | None


class Aggregation(Protocol):
    """needs: ("group",) if group_N must be there. per_sequence: whether only `normalizer: sequence` makes sense."""

    needs: tuple[str, ...]
    per_sequence: bool

    def __call__(self, losses: WeightedLosses, *, progress: float) -> Tensor: ...


class TokenMean:
    """Every token by its weight alone."""

    needs: tuple[str, ...] = ()
    per_sequence: bool = False

    def __call__(self, losses: WeightedLosses, *, progress: float) -> Tensor:
        return (losses.weight_N * losses.loss_N).sum()
