"""Token losses that pull the prediction p towards a target distribution Q other than the token itself.

    f = -sum_v Q_v log p_v,   df/dlogits = p - Q        where Q is detached from the gradient and sums to 1

    LabelSmoothing   Q = (1 - smoothing) onehot + smoothing / V
    Distillation     Q = (1 - teacher_weight) onehot + teacher_weight teacher
    TargetSFT        Q = p_t onehot + (1 - p_t) blend of p and teacher
    GEM              Q = p + onehot - softmax(logits / beta)            (the gradient; the value of f differs)

The teacher is the reference model's distribution.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cft.losses.token import Prediction
from cft.ranges import AboveZero, Fraction, in_range
from cft.scores.column import REFERENCE_DISTRIBUTION


class LabelSmoothing:
    """Q = (1 - smoothing) onehot + smoothing / V (arXiv 1512.00567).

    Args:
        smoothing: probability mass distributed over the vocabulary, 0 to 1; the paper uses 0.1.
    """

    needs: tuple[str, ...] = ()

    @in_range
    def __init__(self, *, smoothing: Fraction) -> None:
        self.smoothing = smoothing

    def __call__(self, prediction: Prediction) -> Tensor:
        return -(1 - self.smoothing) * prediction.logprob_N() - self.smoothing * prediction.logprob_NV.mean(-1)


class Distillation:
    """Q = (1 - teacher_weight) onehot + teacher_weight teacher: knowledge distillation at temperature 1 (arXiv 1503.02531).

    Args:
        teacher_weight: weight of the teacher in the target, 0 to 1; 0.5 is our choice.
    """

    needs: tuple[str, ...] = (REFERENCE_DISTRIBUTION,)

    @in_range
    def __init__(self, *, teacher_weight: Fraction) -> None:
        self.teacher_weight = teacher_weight

    def __call__(self, prediction: Prediction) -> Tensor:
        towards_teacher_N = -(teacher(prediction).exp() * prediction.logprob_NV).sum(-1)
        return -(1 - self.teacher_weight) * prediction.logprob_N() + self.teacher_weight * towards_teacher_N


class TargetSFT:
    """Q = sg(p_t) onehot + (1 - sg(p_t)) blend, blend proportional to sg(p)^(1 - eta) teacher^eta (Target-SFT, arXiv
    2606.11189).

    A reconstruction from a summary of the paper.

    Args:
        eta: weight of the teacher in the blend, 0 to 1. The paper sweeps it; 0.5 is our choice. 0 gives DFT's gradient.
    """

    needs: tuple[str, ...] = (REFERENCE_DISTRIBUTION,)

    @in_range
    def __init__(self, *, eta: Fraction) -> None:
        self.eta = eta

    def __call__(self, prediction: Prediction) -> Tensor:
        with torch.no_grad():
            mixed_NV = (1 - self.eta) * prediction.logprob_NV + self.eta * teacher(prediction)
            trust_N = prediction.logprob_N().exp()
            rest_NV = (1 - trust_N)[:, None] * mixed_NV.softmax(-1)
        return -trust_N * prediction.logprob_N() - (rest_NV * prediction.logprob_NV).sum(-1)


class GEM:
    """f = -sum_v q_v h_v (log p_t - log p_v), q = sg(softmax(logits / beta)) (GEM, arXiv 2408.16673).

    Args:
        beta: temperature, above 0; the paper uses 0.7. beta = 1 with linear h gives the gradient of -log p_t.
        h: one of the two functions in the authors' code. "linear": h = 1, for which f = cross-entropy + sum_v q_v log p_v.
            "log_sigmoid": h_v = sg(sigmoid(0.01 (z_v - z_t))), z the logits.
    """

    needs: tuple[str, ...] = ()

    @in_range
    def __init__(self, *, beta: AboveZero, h: Literal["linear", "log_sigmoid"]) -> None:
        self.beta, self.h = beta, h

    def __call__(self, prediction: Prediction) -> Tensor:
        logprob_N = prediction.logprob_N()
        with torch.no_grad():
            pull_NV = (prediction.logprob_NV / self.beta).softmax(-1)
            if self.h == "log_sigmoid":
                pull_NV *= torch.sigmoid(0.01 * (prediction.logprob_NV - logprob_N[:, None]))
        return -(pull_NV.sum(-1) * logprob_N - (pull_NV * prediction.logprob_NV).sum(-1))


def teacher(prediction: Prediction) -> Tensor:
    """[N, V] the reference's log-softmax; the loss must request it in `needs`."""
    assert prediction.reference_NV is not None, "reference_distribution is needed"
    return prediction.reference_NV
