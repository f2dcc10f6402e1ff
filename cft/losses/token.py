"""Token losses: f(prediction, target), [N] with gradient. The only code that sees the whole distribution.

Called per chunk of tokens and again in the backward pass. A loss that wants logits may take `logprob_NV`: the two differ by
a constant a row. To add one, write a class with `needs` and `__call__`, a yaml in conf/loss/ or conf/regularizer/, and a
line in tests/losses/test_oracle.py.

Here: the protocol, and losses of the target's probability p_t alone (but for a floor of the others). Losses that pull towards a
whole distribution are in `cft/losses/target.py`, terms that are added to a loss in `cft/losses/regularizers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cft.ranges import AtLeastZero, Fraction, FractionBelowOne, FractionInside, in_range
from cft.scores.column import REFERENCE_LOGPROB


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's predictions of N tokens.

    logprob_NV: log-softmax of the logits, float32 (float64 for float64 logits), with gradient. target_N: int64.
    reference_NV: log-softmax of the reference model, without gradient; None unless `reference_distribution` is needed.
    stored: [N] each, the stored scores that `needs` name.
    """

    logprob_NV: Tensor
    target_N: Tensor
    reference_NV: Tensor | None
    stored: Mapping[str, Tensor]

    def logprob_N(self) -> Tensor:
        """log p(y_t), nats, with gradient."""
        return self.logprob_NV.gather(1, self.target_N[:, None])[:, 0]


class TokenLoss(Protocol):
    """needs: "reference_distribution", "reference_logprob" or names of stored scores."""

    needs: tuple[str, ...]
    # log_prob_alone = True: of the prediction only logprob_N() is read, and so the vocabulary need not be at hand.

    def __call__(self, prediction: Prediction) -> Tensor: ...


class NLL:
    """f = -log p(y_t), nats."""

    needs: tuple[str, ...] = ()
    log_prob_alone = True

    def __call__(self, prediction: Prediction) -> Tensor:
        return -prediction.logprob_N()


class Power:
    """f = (1 - p_t^exponent) / exponent (Beyond Log Likelihood, arXiv 2510.00526).

    The gradient is p_t^exponent times that of -log p_t.

    Args:
        exponent: at least 0; the paper uses 0.5 or 1. 0 is the limit -log p_t.
    """

    needs: tuple[str, ...] = ()
    log_prob_alone = True

    @in_range
    def __init__(self, *, exponent: AtLeastZero) -> None:
        self.exponent = exponent

    def __call__(self, prediction: Prediction) -> Tensor:
        if self.exponent == 0:
            return -prediction.logprob_N()
        return -torch.expm1(self.exponent * prediction.logprob_N()) / self.exponent


class ClippedRatio:
    """f = -min(r, clip(r, 1 - eps_low, 1 + eps_high)), r = p_t / p_old (Proximal SFT, PSFT, arXiv 2508.17784).

    A token stops pulling once its probability has grown by eps_high. Demonstrations are all good, so the lower bound never
    decides anything; it is there as in the paper. p_old is the reference: the model before training, where the paper
    renews it with every batch of steps.

    Args:
        eps_low: 0 to 1; the paper's is 0.2.
        eps_high: at least 0; the paper's is 0.28.
    """

    needs: tuple[str, ...] = (REFERENCE_LOGPROB,)
    log_prob_alone = True

    @in_range
    def __init__(self, *, eps_low: Fraction, eps_high: AtLeastZero) -> None:
        self.eps_low, self.eps_high = eps_low, eps_high

    def __call__(self, prediction: Prediction) -> Tensor:
        ratio_N = (prediction.logprob_N() - prediction.stored[REFERENCE_LOGPROB]).exp()
        return -torch.minimum(ratio_N, ratio_N.clamp(1 - self.eps_low, 1 + self.eps_high))


class SymmetricCE:
    """f = ce_weight (-log p_t) + rce_weight sum_v max(p_v, prob_floor) (-log y_v), y the one-hot target held to label_floor
    (symmetric cross-entropy, arXiv 1908.06112; as SLCA++, arXiv 2408.08295, uses it).

    Since log y_t = 0 the reverse part is -log(label_floor) (1 - p_t) but for the floor of p: bounded where -log p_t is not. A
    token whose probability is at the floor is a constant to the gradient, in a large vocabulary most of them.

    Args:
        ce_weight: of the cross-entropy, at least 0; 1 in the authors' settings.
        rce_weight: of the reverse cross-entropy, at least 0; 0.1 in the authors' settings (0.5 on two fine-grained sets).
        label_floor: lowest y, above 0 and below 1; 1e-4 in the authors' code.
        prob_floor: lowest p in the reverse part, 0 to below 1; 1e-7 in the authors' code. With 0, p_t alone is read.
    """

    needs: tuple[str, ...] = ()

    @in_range
    def __init__(
        self,
        *,
        ce_weight: AtLeastZero,
        rce_weight: AtLeastZero,
        label_floor: FractionInside,
        prob_floor: FractionBelowOne,
    ) -> None:
        self.ce_weight, self.rce_weight = ce_weight, rce_weight
        self.label_floor, self.prob_floor = label_floor, prob_floor

    @property
    def log_prob_alone(self) -> bool:
        return self.prob_floor == 0

    def __call__(self, prediction: Prediction) -> Tensor:
        logprob_N = prediction.logprob_N()
        if self.prob_floor == 0:
            others_N = -torch.expm1(logprob_N)
        else:
            floored_NV = prediction.logprob_NV.exp().clamp(min=self.prob_floor)
            others_N = floored_NV.scatter(1, prediction.target_N[:, None], 0.0).sum(-1)
        return -self.ce_weight * logprob_N - self.rce_weight * math.log(self.label_floor) * others_N
