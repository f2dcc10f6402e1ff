"""Weightings that look at the whole row: selections by rank, propagation along the row, one weight a sequence.

A selection ranks within the row. Ranking within a batch, as some papers do, would make the loss of a row depend on how a step
is split into micro-batches; the selected fraction is the same, but the selected tokens may differ.

Normalization: the count of a step includes all eligible tokens. `mean_over_selected` scales the ceil(fraction n)
tokens that a row keeps of its n by n / ceil(fraction n), so that the row enters as the mean over its selected tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cft.ranges import AboveZero, AtLeastZero, Fraction, FractionAboveZero, in_range
from cft.scores.column import REFERENCE_LOGPROB
from cft.weightings.statistics import TokenScores
from cft.weightings.token import Weighting

ATTENTION = "attention_to_prompt"  # the stored score that ssToken ranks by


def mean_over_selected(scores: TokenScores, chosen_N: Tensor) -> Tensor:
    """[N] n / k for the k chosen of a row's n eligible tokens, else 0. chosen_N: [N] 0 or 1."""
    return chosen_N * scores.row_sum(torch.ones_like(chosen_N)) / scores.row_sum(chosen_N).clamp_min(1)


class TopOfRow(Weighting):
    """A selection of each row's ceil(fraction n) highest-scoring tokens."""

    selects: str = "the top of each row"

    @in_range
    def __init__(self, *, fraction: FractionAboveZero) -> None:
        self.fraction = fraction


class HighEntropy(TopOfRow):
    """w = 1 for the tokens of highest predictive entropy, else 0 (arXiv 2506.01939).

    Proposed for policy gradients and used here on -log p_t. Divided by all tokens, as there. The paper ranks within the
    batch, we within the row.

    Args:
        fraction: of the row's eligible tokens, above 0 and at most 1; the paper's is 0.2.
    """

    needs: tuple[str, ...] = ("entropy",)

    def __call__(self, scores: TokenScores) -> Tensor:
        return scores.top_of_row(scores.known["entropy"], fraction=self.fraction)


class ExcessLoss(TopOfRow):
    """The tokens of highest excess loss e_t = log p_ref - log p_t, mean over the selected (Rho-1, arXiv 2404.07965).

    The paper ranks within the batch and trains its reference on curated data. We rank within the row, and the reference is
    the one that reference=... names.

    Args:
        fraction: of the row's eligible tokens, above 0 and at most 1; the paper's is 0.6, up to 0.7.
    """

    needs: tuple[str, ...] = (REFERENCE_LOGPROB,)

    def __call__(self, scores: TokenScores) -> Tensor:
        excess_N = scores.known[REFERENCE_LOGPROB] - scores.logprob_N
        return mean_over_selected(scores, scores.top_of_row(excess_N, fraction=self.fraction))


class SSToken(TopOfRow):
    """The tokens of highest gamma minmax(log p_t - log p_hist) + (1 - gamma) a_t, mean over the selected (ssToken, arXiv
    2510.18250).

    minmax maps a row's values to 0-1. p_hist is the reference, by the paper's default the model before training. a_t is the
    stored score attention_to_prompt, taken as it is stored. Ranked within the row, as in the paper. Until the policy has
    moved away from p_hist, a_t alone decides.

    Args:
        gamma: 0 to 1; the paper's is 0.5.
        fraction: of the row's eligible tokens, above 0 and at most 1; the paper's is 0.6.
    """

    needs: tuple[str, ...] = (REFERENCE_LOGPROB, ATTENTION)

    @in_range
    def __init__(self, *, gamma: Fraction, fraction: FractionAboveZero) -> None:
        super().__init__(fraction=fraction)
        self.gamma = gamma

    def __call__(self, scores: TokenScores) -> Tensor:
        gained_N = scores.row_minmax(scores.logprob_N - scores.known[REFERENCE_LOGPROB])
        score_N = self.gamma * gained_N + (1 - self.gamma) * scores.known[ATTENTION]
        return mean_over_selected(scores, scores.top_of_row(score_N, fraction=self.fraction))


class Propagation(Weighting):
    """w_t = n s_t / sum s, s_t = sum over i >= t of gamma^(i - t) (-log p_i).

    It says how much of the row's later loss depends on token t. The propagation of Intuitive Fine-Tuning (IFT, arXiv
    2405.11870), whose other half is `inputs=mixed`. Tokens without loss add nothing to the sum and one step to the distance
    i - t.

    Args:
        gamma: 0 to 1; the paper's is 0.95. 0 is plain fine-tuning by the authors' convention.
        detached: false as in the authors' code, where the gradient flows through the weights.
    """

    @in_range
    def __init__(self, *, gamma: Fraction, detached: bool) -> None:
        self.gamma, self.detached = gamma, detached

    def __call__(self, scores: TokenScores) -> Tensor:
        if self.gamma == 0 or not len(scores.logprob_N):
            return torch.ones_like(scores.logprob_N)
        width = int(scores.position_N.max()) + 1
        ahead_BT = scores.logprob_N.new_zeros(scores.num_rows, width)
        ahead_BT = ahead_BT.index_put((scores.row_N, scores.position_N), -scores.logprob_N)
        step = 1
        while step < width:  # after the step, a place holds the discounted sum of 2 * step places from itself on
            later_BT = torch.nn.functional.pad(ahead_BT[:, step:], (0, step))
            ahead_BT = ahead_BT + self.gamma**step * later_BT
            step *= 2
        s_N = ahead_BT[scores.row_N, scores.position_N]
        return s_N / scores.row_mean(s_N).clamp_min(torch.finfo(s_N.dtype).tiny)


class SequenceRatio(Weighting):
    """w = min(exp(temperature mean_row(log p_t - log p_ref)), largest), one weight for all tokens of a row, detached.

    Importance-weighted SFT (iw-SFT, arXiv 2507.12856). The mean runs over the row's eligible tokens. The weight starts at 1
    where the reference is the model before training.

    Args:
        temperature: at least 0; the paper's is 1.
        largest: upper bound of the weight, above 0; the yaml's is 16.
    """

    needs: tuple[str, ...] = (REFERENCE_LOGPROB,)

    @in_range
    def __init__(self, *, temperature: AtLeastZero, largest: AboveZero) -> None:
        self.temperature, self.largest = temperature, largest

    def __call__(self, scores: TokenScores) -> Tensor:
        mean_N = scores.row_mean(scores.logprob_N - scores.known[REFERENCE_LOGPROB])
        return (self.temperature * mean_N).exp().clamp_max(self.largest)
