"""Aggregation: reduces token losses of whole rows to one sum. The normalizer determines its divisor.

    TokenMean       sum_n w_n l_n             divided by tokens, or, per sequence, by the row's tokens and by rows
    WorstGroup      sum over rows of (1 - s) L_all + s max(L_0, L_1)               SFT-GO
    SoftmaxGroups   sum over rows of softmax([L_0, L_1] / T) . [L_0, L_1]          SHAD + RFT
    FDivergence     sum over rows of f*(-beta log ratio of the row)                `cft/losses/divergence.py`
    GroupLoss       sum over groups of rows of a loss that compares log-probs      `cft/losses/group.py`

L_g is the mean of w_n l_n over the row's eligible tokens of group g; a group without tokens is ignored. To add an aggregation,
write a class with `__call__`, a yaml in conf/loss/, and a line in tests/losses/test_oracle.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cft.errors import BadValue
from cft.losses.coefficient import Coefficient
from cft.losses.normalizer import Normalizer
from cft.ranges import AboveZero, in_range
from cft.types import RowGroups


@dataclass(frozen=True, slots=True)
class WeightedLosses:
    """Token losses of a batch with their weights.

    Args:
        loss_N: [N] token losses with gradient.
        weight_N: [N] static times dynamic weight; under the `sequence` normalizer already divided by the number of eligible
            tokens of the token's row, unless the aggregation is `of_sums`.
        row_N: as in TokenScores.
        num_rows: as in TokenScores.
        group_N: [N] int64, 0 or 1; None if no groups were requested.
        known: [N] each, the values that the objective's `needs` name.
        groups: groups of rows, as in TokenBatch.
    """

    loss_N: Tensor
    weight_N: Tensor
    row_N: Tensor
    num_rows: int
    group_N: Tensor | None
    known: Mapping[str, Tensor] = field(default_factory=dict)
    groups: RowGroups | None = None

    def row_sums(self, x_N: Tensor) -> Tensor:
        """[B] the weighted sum of x over the eligible tokens of each row."""
        sums_B = self.loss_N.new_zeros(self.num_rows)
        return sums_B.index_add(0, self.row_N, self.weight_N * x_N.to(sums_B.dtype))

    def group_means(self) -> tuple[Tensor, Tensor]:
        """Means by row and token group, for weights that the `sequence` normalizer has divided by the tokens of the row.

        Returns:
            ([B, 2] mean of weight times loss, 0 for an empty group; [B, 2] number of tokens).
        """
        assert self.group_N is not None, "groups are needed"
        cell_N = 2 * self.row_N + self.group_N
        tokens_C = cell_N.bincount(minlength=2 * self.num_rows)
        row_tokens_N = self.row_N.bincount(minlength=self.num_rows)[self.row_N]
        sums_C = self.loss_N.new_zeros(2 * self.num_rows)
        sums_C = sums_C.index_add(0, cell_N, self.weight_N * row_tokens_N * self.loss_N)
        return (sums_C / tokens_C.clamp_min(1)).view(-1, 2), tokens_C.view(-1, 2)


class Aggregation(ABC):
    """Reduces token losses to one sum.

    needs: "group" if group_N is required, and the names that `known` must contain. normalizer: the only valid normalizer, None
    for any. of_sums: whether it uses sums over rows, so that weights are never divided by the tokens of a row. about: contains
    "responses" for a function of the log-probs of whole responses, and "groups" if it compares rows; also read by the config
    check (`cft/config/combinations.py`). measures: names of the metrics that `measure` returns.
    """

    needs: tuple[str, ...] = ()
    normalizer: Normalizer | None = None
    of_sums: bool = False
    about: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, losses: WeightedLosses, *, progress: float) -> Tensor: ...

    def measure(self, losses: WeightedLosses) -> tuple[Tensor, ...]:
        """Sums of `measures`, which have the same divisor as the loss. Called under no_grad."""
        return ()


class TokenMean(Aggregation):
    """The weighted sum of all token losses."""

    def __call__(self, losses: WeightedLosses, *, progress: float) -> Tensor:
        return (losses.weight_N * losses.loss_N).sum()


class WorstGroup(Aggregation):
    """For each row, (1 - s) mean of all tokens + s mean of the worse token group (SFT-GO, arXiv 2506.15021).

    The gradient is that of the currently worse group.

    Args:
        weight: schedule of s, 0 to 1; the paper starts at 0.9. The shape of the decay is a reconstruction: linear to 0.

    Raises:
        BadValue: `weight` is outside 0 to 1.
    """

    needs: tuple[str, ...] = ("group",)
    normalizer: Normalizer | None = "sequence"

    def __init__(self, *, weight: Coefficient) -> None:
        if max(weight.initial, weight.final) > 1:
            raise BadValue(
                f"WorstGroup.weight: expected initial and final from 0 to 1, found {weight.initial} and {weight.final}"
            )
        self.weight = weight

    def __call__(self, losses: WeightedLosses, *, progress: float) -> Tensor:
        weight = self.weight(progress)
        mean_BG, tokens_BG = losses.group_means()
        occupied_B = tokens_BG.sum(-1) > 0
        worst_B = mean_BG.masked_fill(tokens_BG == 0, -torch.inf).max(-1).values[occupied_B]
        return (1 - weight) * (losses.weight_N * losses.loss_N).sum() + weight * worst_B.sum()


class SoftmaxGroups(Aggregation):
    """For each row, sum_g softmax([L_0, L_1] / temperature)_g L_g: reasoning-highlighted fine-tuning (SHAD, arXiv 2412.14780).

    Args:
        temperature: nats, above 0; the paper's 1 / temperature is 0.2 to 0.5.
        detached: whether the two weights are detached from the gradient. The parts of the paper that we read do not state
            this; true is our choice.
    """

    needs: tuple[str, ...] = ("group",)
    normalizer: Normalizer | None = "sequence"

    @in_range
    def __init__(self, *, temperature: AboveZero, detached: bool) -> None:
        self.temperature, self.detached = temperature, detached

    def __call__(self, losses: WeightedLosses, *, progress: float) -> Tensor:
        mean_BG, tokens_BG = losses.group_means()
        occupied_B = tokens_BG.sum(-1) > 0
        mean_BG, empty_BG = mean_BG[occupied_B], tokens_BG[occupied_B] == 0
        weight_BG = (mean_BG / self.temperature).masked_fill(empty_BG, -torch.inf).softmax(-1)
        return ((weight_BG.detach() if self.detached else weight_BG) * mean_BG).sum()
