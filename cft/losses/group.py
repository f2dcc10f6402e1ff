"""Losses over groups of rows, which compare a chosen response of a problem with rejected ones in the same micro-batch.

    Discriminative     -s(y) + tau log mean_j exp(d_j)         discriminative fine-tuning, with a reference model
    MeanDiscriminative the same with means over tokens         without a reference model
    DPO                -log sigmoid(beta (r(y) - r(y_j)))      direct preference optimization
    CriticalDPO        the same, rejected tokens weighted      cDPO

y is the chosen response and y_j are the rejected ones. s is the log-prob of a response, and r = s - s_ref; both are sums over
the tokens with loss, each times its static weight (`WeightedLosses.row_sums`). The loss is summed over groups and divided by
the number of groups in the step.
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
    """Base of losses over groups of rows.

    rejected: maximal number of rejected rows per chosen row; a problem's other rejected rows are used in other epochs. state:
    the state that is kept of each group from epoch to epoch, or None.
    """

    normalizer: Normalizer | None = "problem"
    of_sums: bool = True
    about: tuple[str, ...] = ("responses", "groups")
    measures: tuple[str, ...] = (MARGIN, ACCURACY)
    rejected: int
    state: ExampleState | None = None

    def score_B(self, losses: WeightedLosses) -> Tensor:
        """[B] the policy's score of each row, with gradient."""
        return losses.row_sums(-losses.loss_N)

    @abstractmethod
    def compared_B(self, losses: WeightedLosses) -> Tensor:
        """[B] the value by which rows are ranked in the preference metrics."""

    def measure(self, losses: WeightedLosses) -> tuple[Tensor, ...]:
        """Sums over groups of the means over each group's pairs; with log-ratios if there is a reference."""
        groups, compared_B = _groups(losses), self.compared_B(losses)
        margin_M = compared_B[groups.chosen_G][groups.group_M] - compared_B[groups.rejected_M]
        values = [mean_of_groups(margin_M, groups), mean_of_groups((margin_M > 0).to(margin_M.dtype), groups)]
        if len(self.measures) > len(values):
            ratio_B = losses.row_sums(-losses.loss_N - losses.known[REFERENCE_LOGPROB])
            values += [ratio_B[groups.chosen_G], mean_of_groups(ratio_B[groups.rejected_M], groups)]
        return tuple(value_G.sum() for value_G in values)


class DPO(GroupLoss):
    """Mean over rejected rows of -(1 - e) log sigmoid(m) - e log sigmoid(-m), m = beta (r(y) - r(y_j)) (arXiv 2305.18290).

    Args:
        beta: above 0; 0.1 is usual.
        label_smoothing: e, the assumed probability that a pair is mislabeled, 0 to below 0.5 (conservative DPO).
        rejected: number of rejected rows per chosen row, at least 1.
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
        """[N] log-ratio of policy to reference, with gradient."""
        return -losses.loss_N - losses.known[REFERENCE_LOGPROB]


class CriticalDPO(DPO):
    """DPO in which rejected tokens are weighted by how critical they are: log-ratio times 1 - s_t (cDPO, arXiv 2411.19943).

    s_t = softmax(2 log p+ - log p-)(y_t), where p+ and p- are models of right and of wrong responses: a token that is unlikely
    under p+ turned the response wrong. Chosen tokens have weight 1, as in the official code.

    Args:
        beta: as in `DPO`.
        label_smoothing: as in `DPO`.
        rejected: as in `DPO`.
        contrast: name of the stored score with s_t, computed by cft score score=contrast.
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
    """Discriminative fine-tuning (DFT, arXiv 2502.18679): contrasts the response with samples of the model.

        F_i = -s(y_i) + tau log E_y' exp(s(y') / tau - s_ref(y')),   d_j = s(y_j) / tau - s_ref(y_j)
        u_i <- log((1 - gamma) exp(u_i) + gamma mean_j exp(d_j))      per training example, saved in the checkpoint
        gradient = -grad s(y_i) + mean_j exp(d_j - u_i) grad s(y_j)

    The logged loss is -s(y_i) + tau u_i, an estimate of F_i; its gradient is the one above, as in the official code. Held-out
    problems have no u and use the batch's own mean (gamma = 1).

    Args:
        tau: temperature, above 0; the paper uses 1.
        gamma: weight of the newest samples in u, above 0 and at most 1; the paper uses 0.85.
        initial: initial u of an example, nats; 0 in the official code, which is the value for policy = reference.
        rejected: samples per step, at least 1; the paper uses 2.
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
        """[B] log-prob of each row under the model that generated the samples."""
        return losses.row_sums(losses.known[REFERENCE_LOGPROB])

    def compared_B(self, losses: WeightedLosses) -> Tensor:
        return self.score_B(losses)

    def _estimate(self, newest_G: Tensor, groups: RowGroups) -> Tensor:
        """[G] the next u of each group; stored for training groups."""
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
    reference: d_j = s(y_j) / tau. The samples may come from any model.

    Args:
        tau: above 0; the paper uses 0.3.
        gamma: as in `Discriminative`; the paper uses 0.9.
        initial: as in `Discriminative`.
        rejected: as in `Discriminative`.
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
    assert losses.groups is not None, "the loss compares rows, so the batch must contain groups"
    return losses.groups
