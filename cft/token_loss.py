"""Token losses: f(prediction, target), [N] with gradient. The only code that sees the whole distribution.

Called per chunk of tokens and again in the backward pass. A loss that wants logits may take `logprob_NV`: the two differ by
a constant a row. To add one, write a class with `needs` and `__call__`, and a yaml in conf/loss/ or conf/regularizer/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


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

    def __call__(self, prediction: Prediction) -> Tensor: ...


class NLL:
    """f = -log p(y_t), nats."""

    needs: tuple[str, ...] = ()

    def __call__(self, prediction: Prediction) -> Tensor:
        return -prediction.logprob_N()
