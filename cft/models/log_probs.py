"""Log-probabilities from logits, in sufficient precision."""

from __future__ import annotations

import torch
from torch import Tensor


def log_probs(logits_NV: Tensor) -> Tensor:
    """Log-softmax in float32, or in float64 if the logits are float64."""
    return torch.log_softmax(logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float(), dim=-1)
