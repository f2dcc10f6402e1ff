"""Logits -> log-probabilities, in a precision that holds them."""

from __future__ import annotations

import torch
from torch import Tensor


def log_probs(logits_NV: Tensor) -> Tensor:
    """Log-softmax in float32, or in float64 where the logits are."""
    return torch.log_softmax(logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float(), dim=-1)
