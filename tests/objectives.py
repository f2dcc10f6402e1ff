"""Objectives for tests (plain fine-tuning by default), and their sums for a model on a batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cft.losses.aggregation import Aggregation, TokenMean
from cft.losses.eligible import EligibleTokens
from cft.losses.normalizer import Normalizer, TermSum
from cft.losses.objective import FrozenPrediction, Objective
from cft.losses.regularizers import Regularizer
from cft.losses.token import NLL, TokenLoss
from cft.types import TokenBatch
from cft.weightings.token import TokenWeighting, Uniform


def sft(
    *,
    weighting: TokenWeighting | None = None,
    token_loss: TokenLoss | None = None,
    aggregation: Aggregation | None = None,
    normalizer: Normalizer = "critical",
    regularizers: Mapping[str, Regularizer] | None = None,
    chunk_tokens: int = 1024,
) -> Objective:
    return Objective(
        weighting or Uniform(),
        token_loss=token_loss or NLL(),
        aggregation=aggregation or TokenMean(),
        normalizer=normalizer,
        regularizers=regularizers or {},
        chunk_tokens=chunk_tokens,
    )


def on_logits(
    objective: Objective,
    batch: TokenBatch,
    logits_BTV: torch.Tensor,
    *,
    reference_BTV: torch.Tensor | None = None,
    progress: float = 0.0,
) -> tuple[TermSum, ...]:
    """The objective's sums; logits_BTV[:, t] predicts token t + 1, like a model's logits."""
    tokens: EligibleTokens = objective.tokens(batch)
    before = (tokens.row_N, tokens.position_N - 1)
    frozen = None if reference_BTV is None else FrozenPrediction(reference_BTV[before], lambda h: h)
    return objective(
        tokens,
        logits_BTV[before],
        lambda h: h,
        response_tokens=int((batch.token_group_BT >= 0).sum()),
        reference=frozen,
        progress=progress,
    )
