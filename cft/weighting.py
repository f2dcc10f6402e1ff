"""Weightings: how much each eligible token counts, from live log-probs. Dynamic, flattened over the batch.

    weight_N = weighting(scores)          loss = sum_n  static_n * weight_n * token_loss_n

Which tokens are eligible at all is a mask (`cft/masks.py`). To add a weighting, write a class with a keyword-only
constructor and `__call__`, and a yaml in conf/weighting/ that names it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from cft.token_scores import TokenScores


class TokenWeighting(Protocol):
    """needs: names of what `scores.known` must hold (`cft/token_scores.py`). detached: whether weights are constants to
    the gradient. Both are class or instance attributes."""

    needs: tuple[str, ...]
    detached: bool

    def __call__(self, scores: TokenScores) -> Tensor: ...


class Weighting:
    """What most weightings are: in need of log-probs alone, and constants to the gradient."""

    needs: tuple[str, ...] = ()
    detached: bool = True


class Uniform(Weighting):
    """Every eligible token counts the same."""

    def __call__(self, scores: TokenScores) -> Tensor:
        return torch.ones_like(scores.logprob_N)


class Probability(Weighting):
    """w = sg(p_t): Dynamic Fine-Tuning (DFT, arXiv 2508.05629). The loss becomes -sg(p_t) log p_t."""

    def __call__(self, scores: TokenScores) -> Tensor:
        return scores.logprob_N.exp()
