"""Token losses that are added to another one, each through a `Regularizer` with its tokens and coefficient.

    KLFromReference   KL(reference || policy)    covers what the reference covers; ASFT, SFT + KL
    KLToReference     KL(policy || reference)    keeps to what the reference knows
    MaskedQuadratic   M (p_t - 1/2)^2            SED
    NegativeEntropy   -H                         an entropy bonus

Gradient flows through the policy's distribution alone. Nats.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from cft.losses.coefficient import Coefficient
from cft.losses.eligible import On
from cft.losses.target import teacher
from cft.losses.token import Prediction, TokenLoss
from cft.ranges import AtLeastOne, Fraction, FractionAboveZero, in_range
from cft.scores.column import REFERENCE_DISTRIBUTION


class Regularizer:
    """A further term: its own tokens, its own count, its own coefficient.

    Args:
        where: the tokens it acts on: eligible (the mask's tokens), response, or critical or other (by token group). Not "on",
            which yaml reads as true.
        token_loss: what is added for each of them, nats.
        coefficient: its factor over the training.
    """

    def __init__(self, *, where: On, token_loss: TokenLoss, coefficient: Coefficient) -> None:
        self.where: On = where
        self.token_loss = token_loss
        self.coefficient = coefficient


class KLFromReference:
    """sum_v r_v (log r_v - log p_v), r the reference. ASFT (arXiv 2509.23753): with weighting=probability, coefficient 0.05."""

    needs: tuple[str, ...] = (REFERENCE_DISTRIBUTION,)

    def __call__(self, prediction: Prediction) -> Tensor:
        reference_NV = teacher(prediction)
        return (reference_NV.exp() * (reference_NV - prediction.logprob_NV)).sum(-1)


class KLToReference:
    """sum_v p_v (log p_v - log r_v), r the reference: the direction that policy gradients penalize."""

    needs: tuple[str, ...] = (REFERENCE_DISTRIBUTION,)

    def __call__(self, prediction: Prediction) -> Tensor:
        return (prediction.logprob_NV.exp() * (prediction.logprob_NV - teacher(prediction))).sum(-1)


class MaskedQuadratic:
    """M (p_t - 1/2)^2, M = 1 where the k most probable tokens together have less than tau (SED-SFT, arXiv 2602.07464).

    It acts where the model is not confident, and gradient flows through p_t. The paper's coefficient is 1.

    Args:
        k: tokens, at least 1; the paper's is 2.
        tau: a probability, or "calibrated": fixed once before training so that the fraction `masked_out` of the tokens has
            M = 0 (`cft/training/calibration.py`).
        masked_out: fraction of the tokens with M = 0, above 0 and at most 1; the yaml's is 0.7.
        calibration_rows: about how many rows are read for it, at least 1; the yaml's is 100.
    """

    needs: tuple[str, ...] = ()

    @in_range
    def __init__(
        self,
        *,
        k: AtLeastOne,
        tau: Fraction | Literal["calibrated"],
        masked_out: FractionAboveZero,
        calibration_rows: AtLeastOne,
    ) -> None:
        self.k, self.tau = k, tau
        self.masked_out, self.calibration_rows = masked_out, calibration_rows

    def __call__(self, prediction: Prediction) -> Tensor:
        if isinstance(self.tau, str):
            raise RuntimeError(
                "MaskedQuadratic: tau is to be calibrated before the first step (cft.training.calibration.calibrate)"
            )
        unsure_N = top_mass(prediction.logprob_NV.detach(), k=self.k) < self.tau
        return unsure_N * (prediction.logprob_N().exp() - 0.5) ** 2


class NegativeEntropy:
    """-H(p): a positive coefficient rewards entropy, nats. On the tokens that are not critical (where: other) it asks whether
    what CFT leaves untouched should be kept diverse."""

    needs: tuple[str, ...] = ()

    def __call__(self, prediction: Prediction) -> Tensor:
        return (prediction.logprob_NV.exp() * prediction.logprob_NV).sum(-1)


def top_mass(logprob_NV: Tensor, *, k: int) -> Tensor:
    """[N] the probability of the k most probable tokens together, 0-1."""
    return logprob_NV.topk(min(k, logprob_NV.shape[-1]), dim=-1).values.exp().sum(-1)
