"""Losses over groups of rows: a chosen response of a problem against rejected ones, all in one micro-batch.

    Discriminative     -s(y) + tau log mean_j exp(d_j)         discriminative fine-tuning, with a reference
    MeanDiscriminative the same of means over tokens           without one
    DPO                -log sigmoid(beta (r(y) - r(y_j)))      direct preference optimization
    CriticalDPO        the same, rejected tokens weighted      cDPO

s is the log-prob of a response, r = s - s of the reference, y chosen and y_j rejected: sums over the tokens with loss, each
with its static weight (`WeightedLosses.row_sums`). A loss is summed over groups and divided by the groups of the step.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cft.losses.aggregation import Aggregation, WeightedLosses
from cft.losses.example_state import ExampleState
from cft.losses.normalizer import Normalizer
from cft.ranges import AboveZero, AtLeastOne, Finite, FractionAboveZero, FractionBelowHalf, Name, in_range
from cft.scores.column import REFERENCE_LOGPROB
from cft.types import RowGroups

MARGIN, ACCURACY = "preference_margin", "preference_accuracy"
LOG_RATIOS = ("log_ratio_chosen", "log_ratio_rejected")


class GroupLoss(Aggregation):
    """rejected: rows that each chosen one is compared with, at most; others of the problem come in other epochs. state: what
    is kept of each group from epoch to epoch, None for nothing."""

    normalizer: Normalizer | None = "problem"
    of_sums: bool = True
    about: tuple[str, ...] = ("responses", "groups")
    measures: tuple[str, ...] = (MARGIN, ACCURACY)
    rejected: int
    state: ExampleState | None = None

    def score_B(self, losses: WeightedLosses) -> Tensor:
        """[B] what the policy says of each row as a whole, with gradient."""
        return losses.row_sums(-losses.loss_N)

    @abstractmethod
    def compared_B(self, losses: WeightedLosses) -> Tensor:
        """[B] the number by which a row counts as preferred to another one."""

    def measure(self, losses: WeightedLosses) -> tuple[Tensor, ...]:
        """Of each group the mean over its pairs; log-ratios where there is a reference."""
        groups, compared_B = _groups(losses), self.compared_B(losses)
        margin_M = compared_B[groups.chosen_G][groups.group_M] - compared_B[groups.rejected_M]
        values = [mean_of_groups(margin_M, groups), mean_of_groups((margin_M > 0).to(margin_M.dtype), groups)]
        if len(self.measures) > len(values):
            ratio_B = losses.row_sums(-losses.loss_N - losses.known[REFERENCE_LOGPROB])
            values += [ratio_B[groups.chosen_G], mean_of_groups(ratio_B[groups.rejected_M], groups)]
        return tuple(value_G.sum() for value_G in values)


class DPO(GroupLoss):
    """Mean over the rejected of -(1 - e) log sigmoid(m) - e log sigmoid(-m), m = beta (r(y) - r(y_j)) (arXiv 2305.18290).

    Args:
        beta: above 0; 0.1 is usual.
        label_smoothing: e, the chance that a pair is the wrong way round, 0 to below 0.5 (conservative DPO).
        rejected: rows a pair's chosen one is compared with, at least 1.
    """

    needs: tuple[str, ...] = (REFERENCE_LOGPROB,)
    measures: tuple[str, ...] = (MARGIN, ACCURACY, *LOG_RATIOS)

    @in_range
    def __init__(self, *, beta: AboveZero, label_smoothing: FractionBelowHalf, rejected: AtLeastOne) -> None:
        self.beta, self.label_smoothing, self.rejected = beta, label_smoothing, rejected

    def __call__(self, losses: WeightedLosses, *, progress: float) -> Tensor:
        groups, reward_B = _groups(losses), self.compared_B(losses)
        margin_M = reward_B[groups.chosen_G][groups.group_M] - reward_B[groups.rejected_M]
        smoothing = self.label_smoothing
        loss_M = -(1 - smoothing) * logsigmoid(margin_M) - smoothing * logsigmoid(-margin_M)
        return mean_of_groups(loss_M, groups).sum()

    def compared_B(self, losses: WeightedLosses) -> Tensor:
        return self.beta * losses.row_sums(self.ratio_N(losses))

    def ratio_N(self, losses: WeightedLosses) -> Tensor:
        """[N] log-ratio of the policy and the reference, with gradient."""
        return -losses.loss_N - losses.known[REFERENCE_LOGPROB]


class CriticalDPO(DPO):
    """DPO in which a rejected token counts by how critical it is: its log-ratio times 1 - s_t (cDPO, arXiv 2411.19943).

    s_t = softmax(2 log p+ - log p-)(y_t), p+ and p- models of right and of wrong responses: a token that the first finds
    unlikely turned the response wrong. Chosen tokens count in full, as in the official code.

    Args:
        beta: as in `DPO`, and so are `label_smoothing` and `rejected`.
        contrast: the stored score that holds s_t, made by cft score score=contrast.
    """

    contrast_arguments: tuple[str, ...] = ("contrast",)

    @in_range
    def __init__(
        self, *, beta: AboveZero, label_smoothing: FractionBelowHalf, rejected: AtLeastOne, contrast: Name
    ) -> None:
        super().__init__(beta=beta, label_smoothing=label_smoothing, rejected=rejected)
        self.contrast = contrast
        self.needs = (REFERENCE_LOGPROB, contrast)

    def ratio_N(self, losses: WeightedLosses) -> Tensor:
        rejected_B = torch.zeros(losses.num_rows, dtype=losses.loss_N.dtype, device=losses.loss_N.device)
        rejected_B[_groups(losses).rejected_M] = 1.0
        critical_N = 1 - rejected_B[losses.row_N] * losses.known[self.contrast].to(losses.loss_N.dtype)
        return critical_N * super().ratio_N(losses)


class Discriminative(GroupLoss):
    """Discriminative fine-tuning (DFT, arXiv 2502.18679): the response against samples of the model.

        F_i = -s(y_i) + tau log E_y' exp(s(y') / tau - s_ref(y')),   d_j = s(y_j) / tau - s_ref(y_j)
        u_i <- log((1 - gamma) exp(u_i) + gamma mean_j exp(d_j))      of each training example, in the checkpoint
        gradient = -grad s(y_i) + mean_j exp(d_j - u_i) grad s(y_j)

    The loss that is logged is -s(y_i) + tau u_i, an estimate of F_i, and its gradient the one above, as in the official
    code. Held-out problems have no u: the batch's own mean, gamma = 1.

    Args:
        tau: temperature, above 0; the paper's is 1.
        gamma: weight of the newest samples in u, above 0 and at most 1; the paper's is 0.85.
        initial: u before an example was seen, nats; 0 in the official code, as for a policy that is the reference.
        rejected: samples a step, at least 1; the paper's is 2.
    """

    needs: tuple[str, ...] = (REFERENCE_LOGPROB,)
    measures: tuple[str, ...] = (MARGIN, ACCURACY, *LOG_RATIOS)

    @in_range
    def __init__(self, *, tau: AboveZero, gamma: FractionAboveZero, initial: Finite, rejected: AtLeastOne) -> None:
        self.tau, self.gamma, self.rejected = tau, gamma, rejected
        self.state = ExampleState(initial=initial)

    def __call__(self, losses: WeightedLosses, *, progress: float) -> Tensor:
        groups, score_B = _groups(losses), self.score_B(losses)
        chosen_G, rejected_M = score_B[groups.chosen_G], score_B[groups.rejected_M]
        with torch.no_grad():
            d_M = rejected_M / self.tau - self.offset_B(losses)[groups.rejected_M]
            u_G = self._estimate(log_mean_exp(d_M, groups), groups)
            pull_M = (d_M - u_G[groups.group_M]).exp()
        loss = (mean_of_groups(pull_M * rejected_M, groups) - chosen_G).sum()
        value = (self.tau * u_G - chosen_G.detach()).sum()
        return loss + (value - loss.detach())

    def offset_B(self, losses: WeightedLosses) -> Tensor:
        """[B] log-prob of each row under what the samples are from."""
        return losses.row_sums(losses.known[REFERENCE_LOGPROB])

    def compared_B(self, losses: WeightedLosses) -> Tensor:
        return self.score_B(losses)

    def _estimate(self, newest_G: Tensor, groups: RowGroups) -> Tensor:
        """[G] the next u of each group, remembered where it is trained on."""
        if groups.example_G is None:
            return newest_G
        assert self.state is not None
        newest_G = math.log(self.gamma) + newest_G
        if self.gamma < 1:
            old_G = self.state.of(groups.example_G).to(newest_G.dtype)
            newest_G = torch.logaddexp(math.log1p(-self.gamma) + old_G, newest_G)
        self.state.decide(groups.example_G, newest_G)
        return newest_G


class MeanDiscriminative(Discriminative):
    """The second form of discriminative fine-tuning (DFT2): means over the tokens of a response instead of sums, and no
    reference: d_j = s(y_j) / tau. Then samples may be of any model.

    Args:
        tau: above 0; the paper's is 0.3.
        gamma: as in `Discriminative`, and so are `initial` and `rejected`; the paper's is 0.9.
    """

    needs: tuple[str, ...] = ()
    measures: tuple[str, ...] = (MARGIN, ACCURACY)

    @in_range
    def __init__(self, *, tau: AboveZero, gamma: FractionAboveZero, initial: Finite, rejected: AtLeastOne) -> None:
        super().__init__(tau=tau, gamma=gamma, initial=initial, rejected=rejected)

    def score_B(self, losses: WeightedLosses) -> Tensor:
        none_B = losses.loss_N.new_zeros(losses.num_rows)
        tokens_B = none_B.index_add(0, losses.row_N, torch.ones_like(losses.loss_N))
        return super().score_B(losses) / tokens_B.clamp_min(1)

    def offset_B(self, losses: WeightedLosses) -> Tensor:
        return losses.loss_N.new_zeros(losses.num_rows)


def mean_of_groups(value_M: Tensor, groups: RowGroups) -> Tensor:
    """[G] the mean over the rejected rows of each group."""
    none_G = value_M.new_zeros(len(groups.chosen_G))
    rows_G = none_G.index_add(0, groups.group_M, torch.ones_like(value_M))
    return none_G.index_add(0, groups.group_M, value_M) / rows_G


def log_mean_exp(value_M: Tensor, groups: RowGroups) -> Tensor:
    """[G] log of the mean of exp over the rejected rows of each group."""
    most_G = value_M.new_zeros(len(groups.chosen_G))
    most_G = most_G.scatter_reduce(0, groups.group_M, value_M, "amax", include_self=False)
    return most_G + mean_of_groups((value_M - most_G[groups.group_M]).exp(), groups).log()


def _groups(losses: WeightedLosses) -> RowGroups:
    assert losses.groups is not None, "rows come in groups where the loss compares them"
    return losses.groups
