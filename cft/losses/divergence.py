"""Fine-tuning objectives from f-divergences, on the log-ratio of a whole response (arXiv 2507.00018).

    D = beta (s(y) - s_ref(y)),  s the sum of log-probs over the tokens with loss        L = f*(-D), summed over rows

    total_variation   -D                  plain fine-tuning on sums, times beta
    pearson           -D + D^2 / 4        no gradient for D >= 2, where f* is constant
    hellinger         -D / (1 + D)        squared Hellinger; its domain is D > -1
    forward_kl        exp(-D - 1)         f(u) = u log u

This is a reconstruction: neither code nor the paper's appendix was available. The conjugates f* are those of f-GAN (arXiv
1606.00709, table 6) at -D. Below D = -1/2 the squared Hellinger term is extended by its tangent, since it diverges at -1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from cft.losses.aggregation import Aggregation, WeightedLosses
from cft.losses.normalizer import Normalizer
from cft.ranges import AboveZero, in_range
from cft.scores.column import REFERENCE_LOGPROB

Divergence = Literal["total_variation", "pearson", "hellinger", "forward_kl"]
_TANGENT_FROM = -0.5


def _pearson(delta_B: Tensor) -> Tensor:
    delta_B = delta_B.clamp(max=2.0)
    return delta_B**2 / 4 - delta_B


def _hellinger(delta_B: Tensor) -> Tensor:
    inside_B = delta_B.clamp(min=_TANGENT_FROM)
    slope = -1 / (1 + _TANGENT_FROM) ** 2
    return -inside_B / (1 + inside_B) + slope * (delta_B - inside_B)


_CONJUGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "total_variation": torch.neg,
    "pearson": _pearson,
    "hellinger": _hellinger,
    "forward_kl": lambda delta_B: (-delta_B - 1).exp(),
}


class FDivergence(Aggregation):
    """Sum over rows of f*(-beta (s(y) - s_ref(y))), divided by rows. A reconstruction, see the module docstring.

    Args:
        divergence: the f-divergence.
        beta: scale of the response's log-ratio, per nat, above 0. The source's value is not known; 0.1, as in DPO, is ours.
    """

    needs: tuple[str, ...] = (REFERENCE_LOGPROB,)
    normalizer: Normalizer | None = "sequence"
    of_sums: bool = True
    about: tuple[str, ...] = ("responses",)
    measures: tuple[str, ...] = ("log_ratio",)

    @in_range
    def __init__(self, *, divergence: Divergence, beta: AboveZero) -> None:
        self.divergence, self.beta = divergence, beta

    def __call__(self, losses: WeightedLosses, *, progress: float) -> Tensor:
        occupied_B = losses.loss_N.new_zeros(losses.num_rows)
        occupied_B[losses.row_N] = 1.0
        delta_B = self.beta * losses.row_sums(self._ratio_N(losses))
        return (_CONJUGATES[self.divergence](delta_B) * occupied_B).sum()

    def measure(self, losses: WeightedLosses) -> tuple[Tensor, ...]:
        return (losses.row_sums(self._ratio_N(losses)).sum(),)

    def _ratio_N(self, losses: WeightedLosses) -> Tensor:
        return -losses.loss_N - losses.known[REFERENCE_LOGPROB]
