"""Logits from hidden states of selected positions: the output head, and the model's scale or cap of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_FACTORS = ("logit_scale", "lm_head_multiplier")  # in the config: Cohere, Falcon-H1
_DIVISORS = ("logits_scaling",)  # Granite
_CAPS = ("final_logit_softcapping", "logits_soft_cap")  # Gemma 2, RecurrentGemma


def backbone(model: PreTrainedModel) -> nn.Module:
    """The model without its head, which returns `last_hidden_state`. Some models define no base model (Llama 4)."""
    base = model.base_model
    return base if base is not model else model.get_decoder()


def project(model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
    """[N, V] logits, equal to those of the model's own forward pass (`SelectiveLM.check_head` compares the two).

    Gemma caps its logits, Cohere and Falcon-H1 multiply and Granite divides them; the config names are those of transformers.
    Scaling of embeddings and residuals (Gemma, Granite) is part of the backbone.
    """
    head = model.get_output_embeddings()
    assert head is not None, "a causal language model has an output head"
    return _scaled(model, head(hidden_ND))


def project_exactly(model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
    """[N, V] float32 logits from half-precision states and weights, not rounded to half precision."""
    head: Any = model.get_output_embeddings()
    if head.weight.device.type == "cuda":  # torch supports out_dtype only there; elsewhere the head is copied
        logits_NV = torch.mm(hidden_ND, head.weight.t(), out_dtype=torch.float32)
    else:
        logits_NV = hidden_ND.float() @ head.weight.float().t()
    bias = getattr(head, "bias", None)
    return _scaled(model, logits_NV if bias is None else logits_NV + bias.float())


def scales_logits(model: PreTrainedModel) -> bool:
    """Whether the model scales or caps the head's output."""
    config = model.config.get_text_config(decoder=True)
    return any(getattr(config, name, None) is not None for name in (*_FACTORS, *_DIVISORS, *_CAPS))


def _scaled(model: PreTrainedModel, logits_NV: Tensor) -> Tensor:
    config = model.config.get_text_config(decoder=True)
    for name in _FACTORS:
        if (factor := getattr(config, name, None)) is not None:
            logits_NV = logits_NV * factor
    for name in _DIVISORS:
        if (divisor := getattr(config, name, None)) is not None:
            logits_NV = logits_NV / divisor
    for name in _CAPS:
        if (cap := getattr(config, name, None)) is not None:
            logits_NV = torch.tanh(logits_NV / cap) * cap
    return logits_NV
