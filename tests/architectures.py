"""Small models of many architectures, uneven rows for them, and the gradient that is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from cft.data.batches import TokenRow
from cft.data.batches import collate as collate_counted
from cft.types import StepCounts, TokenBatch


def collate(rows: list[TokenRow]) -> TokenBatch:
    """As one micro-batch that is the whole step."""
    return collate_counted(rows, step_counts=sum((row.counts() for row in rows), StepCounts()))


def token_row(length: int, prompt_len: int, *, density: float, seed: int) -> TokenRow:
    rng = np.random.default_rng(seed)
    weight = np.zeros(length, np.float32)
    weight[prompt_len:] = rng.random(length - prompt_len) < density
    probe = np.full(length, -1, np.int8)
    probe[prompt_len:] = rng.random(length - prompt_len) < 0.5
    return TokenRow(f"r{seed}", rng.integers(3, 60, length), weight, probe)


def gradients(model: torch.nn.Module) -> torch.Tensor:
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return grads


SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": None},
    "olmo2": {},
    "phi3": {},
    "gemma": {"head_dim": 8},
    "granite": {},
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}


def model_of(kind: str, *, attention: str = "sdpa", **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**SMALL, **ARCHITECTURES.get(kind, {}), **options})
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def uneven() -> TokenBatch:
    """Five rows of 9 to 23 tokens; the third has nothing to train on."""
    rows = [token_row(9 + 7 * i % 19, 3 + i % 2, density=0.0 if i == 2 else 0.4, seed=i) for i in range(5)]
    return collate(rows)
