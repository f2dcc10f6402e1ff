"""Token losses: f(prediction, target), [N] with gradient. Only token losses use the full next-token distribution.

They are called per chunk of tokens, and again when the backward pass recomputes the chunk. A loss that needs logits may use
`logprob_NV`, which differs by a constant per row. To add a token loss, write a class with `needs` and `__call__`, a yaml in
conf/loss/ or conf/regularizer/, and a line in tests/losses/test_oracle.py.

This file contains the protocol and losses of the target's probability p_t (and, in one case, a floor for the other
probabilities). Losses towards a target distribution are in `cft/losses/target.py`, additional terms in
`cft/losses/regularizers.py`.
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

    Args:
        logprob_NV: log-softmax of the logits, float32 (float64 for float64 logits), with gradient.
        target_N: int64 token ids.
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
    """A token loss. needs: "reference_distribution", "reference_logprob" or names of stored scores."""

    needs: tuple[str, ...]
    # log_prob_alone = True: only logprob_N() of the prediction is used, so the full distribution need not be computed.

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

    The gradient of a token vanishes once its probability has grown by the factor 1 + eps_high. The lower bound never has an
    effect, since all demonstrations are positive examples; it is included as in the paper. p_old is the reference: the model
    before training, whereas the paper updates it with every batch of steps.

    Args:
        eps_low: 0 to 1; the paper uses 0.2.
        eps_high: at least 0; the paper uses 0.28.
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
    """f = ce_weight (-log p_t) + rce_weight sum_v max(p_v, prob_floor) (-log y_v), y the one-hot target clamped to at least
    label_floor (symmetric cross-entropy, arXiv 1908.06112; as used in SLCA++, arXiv 2408.08295).

    Since log y_t = 0, the reverse part is -log(label_floor) (1 - p_t), apart from the floor of p: unlike -log p_t, it is
    bounded. Tokens whose probability is at the floor have no gradient; in a large vocabulary these are most tokens.

    Args:
        ce_weight: weight of the cross-entropy, at least 0; 1 in the authors' settings.
        rce_weight: weight of the reverse cross-entropy, at least 0; 0.1 in the authors' settings (0.5 on two fine-grained
            sets).
        label_floor: lowest y, above 0 and below 1; 1e-4 in the authors' code.
        prob_floor: lowest p in the reverse part, 0 to below 1; 1e-7 in the authors' code. With 0, only p_t is used.
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
