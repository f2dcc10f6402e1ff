"""Weightings: how much each eligible token counts, from live log-probs. Dynamic, detached, flattened over the batch.

    weight_N = weighting(scores)          loss = sum_n  static_n * weight_n * token_loss_n

Which tokens are eligible at all is a mask (`cft/masks.py`). To add a weighting, write a class with a keyword-only
constructor and `__call__`, and a yaml in conf/weighting/ that names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What is known of every eligible token of a micro-batch, without gradient.

    logprob_N: float32, log p(y_t), nats. row_N: int64, row within the micro-batch. position_N: int64, index of the
    token in its row, prompt included.
    """

    logprob_N: Tensor
    row_N: Tensor
    position_N: Tensor


class TokenWeighting(Protocol):
    def __call__(self, scores: TokenScores) -> Tensor: ...


class Uniform:
    """Every eligible token counts the same."""

    def __call__(self, scores: TokenScores) -> Tensor:
        return torch.ones_like(scores.logprob_N)


class Probability:
    """w = sg(p_t): Dynamic Fine-Tuning (DFT, arXiv 2508.05629). The loss becomes -sg(p_t) log p_t."""

    def __call__(self, scores: TokenScores) -> Tensor:
        return scores.logprob_N.exp()
