"""Hidden states -> logits, for the positions at hand only: the output head, and the scale or cap that a model puts on it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel


def project(model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
    """[N, V] logits, as the model's own forward gives them (`SelectiveLM.check_head` compares the two).

    The names are those of transformers: Gemma caps its logits, Cohere multiplies and Granite divides them.
    """
    head = model.get_output_embeddings()
    assert head is not None, "a causal language model has an output head"
    logits_NV = head(hidden_ND)
    config = model.config.get_text_config(decoder=True)
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits_NV = logits_NV * factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits_NV = logits_NV / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits_NV = torch.tanh(logits_NV / cap) * cap
    return logits_NV
