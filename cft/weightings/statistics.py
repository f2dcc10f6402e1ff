"""Statistics available to weightings: of the live prediction, and scores stored with the row.

A weighting declares what it needs (`needs = ("entropy",)`). Names in LIVE are computed from the logits of each chunk, without
gradient; `reference_logprob` and any other name come from the batch's stored scores (or a live reference model).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

TOP_ENTROPY_TOKENS = 20


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The eligible tokens of a micro-batch, by row and then position. Rows are always whole.

    logprob_N: log p(y_t), nats, float32; with gradient only for a weighting that says `detached = False`.
    row_N: int64, row within the micro-batch. position_N: int64, index of the token in its row, prompt included.
    num_rows: rows of the micro-batch. known: [N] each, what the weighting's `needs` name.
    """

    logprob_N: Tensor
    row_N: Tensor
    position_N: Tensor
    num_rows: int
    known: Mapping[str, Tensor]

    def row_sum(self, x_N: Tensor) -> Tensor:
        """[N] the sum of x over the eligible tokens of the token's own row."""
        return x_N.new_zeros(self.num_rows).index_add(0, self.row_N, x_N)[self.row_N]

    def row_mean(self, x_N: Tensor) -> Tensor:
        """[N] the mean of x over the eligible tokens of the token's own row."""
        return self.row_sum(x_N) / self.row_sum(torch.ones_like(x_N))

    def row_minmax(self, x_N: Tensor) -> Tensor:
        """[N] x mapped to 0-1 by the least and greatest value of the token's own row; 0 where they are equal."""
        lows_B, highs_B = (
            x_N.new_zeros(self.num_rows).scatter_reduce(0, self.row_N, x_N, reduce, include_self=False)
            for reduce in ("amin", "amax")
        )
        span_N = (highs_B - lows_B)[self.row_N]
        return torch.where(span_N > 0, (x_N - lows_B[self.row_N]) / span_N, 0.0)

    def top_of_row(self, x_N: Tensor, *, fraction: float) -> Tensor:
        """[N] 1 for the ceil(fraction * n) largest of each row's n tokens, at least one, else 0; equal values: the
        earlier token.

        Ranking within rows keeps a selection independent of how rows are split into micro-batches.
        """
        by_value = x_N.argsort(descending=True, stable=True)
        order = by_value[self.row_N[by_value].argsort(stable=True)]
        count_B = self.row_N.bincount(minlength=self.num_rows)
        first_B = count_B.cumsum(0) - count_B
        rank_N = torch.empty_like(self.row_N)
        rank_N[order] = torch.arange(len(order), device=order.device) - first_B[self.row_N[order]]
        # A product such as 0.6 * 5 may be slightly above the exact integer.
        wanted_B = (fraction * count_B.double() - 1e-9).ceil().clamp_min(1)
        return (rank_N < wanted_B[self.row_N]).to(x_N.dtype)


def entropy(logprob_NV: Tensor, target_N: Tensor) -> Tensor:
    """H of the next-token distribution, nats."""
    return torch.special.entr(logprob_NV.exp()).sum(-1)


def top_entropy(logprob_NV: Tensor, target_N: Tensor) -> Tensor:
    """H of the 20 most probable tokens, renormalized, nats."""
    top_NK = logprob_NV.topk(min(TOP_ENTROPY_TOKENS, logprob_NV.shape[-1]), dim=-1).values
    return entropy(top_NK.log_softmax(-1), target_N)


def margin(logprob_NV: Tensor, target_N: Tensor) -> Tensor:
    """Logit of the target minus the largest other logit (log-probs differ from logits by a constant a row)."""
    others_NV = logprob_NV.scatter(1, target_N[:, None], -torch.inf)
    return logprob_NV.gather(1, target_N[:, None])[:, 0] - others_NV.amax(-1)


LIVE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "entropy": entropy,
    "top_entropy": top_entropy,
    "margin": margin,
}
