"""Token losses that are added to the main loss, each in a `Regularizer` with its tokens and coefficient. In nats.

    KLFromReference   KL(reference || policy)    mode-covering; ASFT, SFT + KL
    KLToReference     KL(policy || reference)    mode-seeking
    MaskedQuadratic   M (p_t - 1/2)^2            SED
    NegativeEntropy   -H                         an entropy bonus

Gradient flows only through the policy's distribution.
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
    """An additional term of the loss with its own tokens, count and coefficient.

    Args:
        where: the tokens it acts on: eligible (the mask's tokens), response, or critical or other (by token group). The key is
            not "on", which yaml reads as true.
        token_loss: the loss of each of these tokens, nats.
        coefficient: schedule of its factor.
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
    """sum_v p_v (log p_v - log r_v), r the reference: the direction that policy-gradient methods penalize."""

    needs: tuple[str, ...] = (REFERENCE_DISTRIBUTION,)

    def __call__(self, prediction: Prediction) -> Tensor:
        return (prediction.logprob_NV.exp() * (prediction.logprob_NV - teacher(prediction))).sum(-1)


class MaskedQuadratic:
    """M (p_t - 1/2)^2, M = 1 if the total probability of the k most probable tokens is below tau (SED-SFT, arXiv 2602.07464).

    It acts where the model is not confident, and gradient flows through p_t. The paper uses coefficient 1.

    Args:
        k: number of tokens, at least 1; the paper uses 2.
        tau: a probability, or "calibrated": set once before training such that the fraction `masked_out` of the tokens has
            M = 0 (`cft/training/calibration.py`).
        masked_out: fraction of the tokens with M = 0, above 0 and at most 1; 0.7 in the yaml.
        calibration_rows: number of rows used for calibration, at least 1; 100 in the yaml.
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
                "MaskedQuadratic: tau must be calibrated before the first step (cft.training.calibration.calibrate)"
            )
        unsure_N = top_mass(prediction.logprob_NV.detach(), k=self.k) < self.tau
        return unsure_N * (prediction.logprob_N().exp() - 0.5) ** 2


class NegativeEntropy:
    """-H(p), nats: a positive coefficient rewards entropy.

    On the tokens that are not critical (where: other), it tests whether tokens outside CFT's loss should be kept diverse.
    """

    needs: tuple[str, ...] = ()

    def __call__(self, prediction: Prediction) -> Tensor:
        return (prediction.logprob_NV.exp() * prediction.logprob_NV).sum(-1)


def top_mass(logprob_NV: Tensor, *, k: int) -> Tensor:
    """[N] the total probability of the k most probable tokens, 0-1."""
    return logprob_NV.topk(min(k, logprob_NV.shape[-1]), dim=-1).values.exp().sum(-1)
