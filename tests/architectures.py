"""Small models of many architectures, uneven rows for them, and the gradients of a training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from cft.data.batches import TokenRow
from cft.data.batches import collate as collate_counted
from cft.models.experts import experts_of
from cft.types import StepCounts, TokenBatch


def collate(rows: list[TokenRow]) -> TokenBatch:
    """The rows as one micro-batch that is the whole step."""
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


@dataclass(frozen=True, slots=True)
class Family:
    """A small model of a published family.

    kind: class of its config. options: config values that define the family. engines: in-process engines that can decode it.
    packs: whether packed rows are supported. attention: implementations in transformers.
    """

    kind: str
    options: dict[str, Any]
    engines: tuple[str, ...] = ("reference", "shared_prefix", "continuous")
    packs: bool = True
    attention: str = "sdpa"


NO_FORKS = ("reference", "continuous")
WINDOW = 6
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GRANITE = {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}

FAMILIES: dict[str, Family] = {
    "qwen3": Family("qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "llama-3.2": Family("llama", {"head_dim": 8, "tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}),
    "smollm3": Family("smollm3", {"tie_word_embeddings": True, "no_rope_layers": [1, 0]}),
    "gemma-3": Family("gemma3_text", {"head_dim": 8, "sliding_window": WINDOW, "sliding_window_pattern": 2}, NO_FORKS),
    "gemma-3, short rows": Family("gemma3_text", {"head_dim": 8, "sliding_window": 48, "sliding_window_pattern": 2}),
    "olmo-3": Family(
        "olmo3", {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}, NO_FORKS
    ),
    "phi-4-mini": Family("phi3", {"partial_rotary_factor": 0.75, "sliding_window": None, "tie_word_embeddings": True}),
    "granite-3.3": Family("granite", {**GRANITE, "tie_word_embeddings": True}),
    "granite-3.1-moe": Family("granitemoe", {**GRANITE, **LOCAL_EXPERTS}),
    "granite-4.0": Family(
        "granitemoehybrid",
        {
            **GRANITE,
            **MAMBA2,
            "layer_types": ["full_attention"] * 2,
            "num_local_experts": 0,
            "shared_intermediate_size": 48,
        },
    ),
    "granite-4.0-h": Family(
        "granitemoehybrid",
        {
            **GRANITE,
            **LOCAL_EXPERTS,
            **MAMBA2,
            "layer_types": ["linear_attention", "full_attention"],
            "shared_intermediate_size": 48,
        },
        ("reference",),
        packs=False,
    ),
    "qwen3-moe": Family("qwen3_moe", {**EXPERTS, "head_dim": 8}),
    "olmoe": Family("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-next": Family("qwen3_next", {**EXPERTS, **LINEAR, "head_dim": 8}, ("reference",), packs=False),
    "lfm2": Family("lfm2", {"layer_types": ["conv", "full_attention"]}, ("reference",), packs=False),
    "mamba": Family("mamba", {"state_size": 4}, ("reference",), packs=False, attention="eager"),
    "bamba": Family("bamba", {**MAMBA2, "attn_layer_indices": [1]}, ("reference",), packs=False),
    "recurrentgemma": Family(
        "recurrent_gemma",
        {
            "head_dim": 8,
            "lru_width": 32,
            "attention_window_size": WINDOW,
            "num_hidden_layers": 3,
            "logits_soft_cap": 3.0,
        },
        ("reference",),
        packs=False,
    ),
    "falcon-h1": Family(
        "falcon_h1",
        {**MAMBA2, "mamba_d_ssm": 64, "head_dim": 8, "lm_head_multiplier": 0.4},
        ("reference",),
        packs=False,
    ),
    "gemma-2": Family(
        "gemma2",
        {"head_dim": 8, "sliding_window": WINDOW, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0},
        NO_FORKS,
        attention="eager",
    ),
    "cohere2": Family("cohere2", {"logit_scale": 0.3, "head_dim": 8, "sliding_window": WINDOW}, NO_FORKS),
    "mistral": Family("mistral", {"sliding_window": WINDOW}, NO_FORKS),
    "mixtral": Family("mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "gpt-oss": Family("gpt_oss", {**LOCAL_EXPERTS, "head_dim": 8, "sliding_window": WINDOW}, NO_FORKS, False, "eager"),
    "bloom": Family("bloom", {"n_layer": 2, "n_head": 4}, ("reference",), packs=False, attention="eager"),
}


def model_of(kind: str, *, attention: str = "sdpa", **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**SMALL, **ARCHITECTURES.get(kind, {}), **options})
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def family(name: str, **options: Any) -> PreTrainedModel:
    """A small random model of one of FAMILIES."""
    found = FAMILIES[name]
    return model_of(found.kind, attention=found.attention, **{**found.options, **options})


def exact_family(name: str, **options: Any) -> PreTrainedModel:
    """The model in float64, for tests that run `in_float64`; grouped matrix products of experts do not support float64."""
    model = family(name, **options).double()
    if experts_of(model.config):
        model.set_experts_implementation("eager")
    return model


def uneven() -> TokenBatch:
    """Five rows of 9 to 23 tokens; the third has no eligible token."""
    rows = [token_row(9 + 7 * i % 19, 3 + i % 2, density=0.0 if i == 2 else 0.4, seed=i) for i in range(5)]
    return collate(rows)
