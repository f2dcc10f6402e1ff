"""What a model's config says of its attention and positions, and what follows for engines and layouts.

    plain_obstacles     no engine and no layout here is right for it: recurrent state, windows, an encoder
    fork_obstacles      engine=shared_prefix is not right for it: ALiBi, soft-capped scores, attention sinks
    require_*           what a stage cannot do with a model is said with the reason, before the weights where that is known
    context_length      how many tokens a row may have; ends where rotary embeddings begin to depend on the length

All are read off the config, so that they are said before weights are loaded. What a config does not tell is found by
the numerical checks (`SharedPrefixEngine._self_check`, `SelectiveLM.check_layout`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cft.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from cft.models.load import ModelSpec

# Names of the context length in configs that do not call it max_position_embeddings; ALiBi has none.
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_RECURRENT = {"linear_attention", "mamba", "mamba2", "recurrent", "conv", "short_conv"}


class ModelError(UserError, ValueError):
    """A model or tokenizer that cannot be had or cannot be used; the message names the key to change."""


def require_plain_attention(model: PreTrainedModel) -> None:
    """Raise ModelError unless every layer attends to all earlier tokens.

    Forks cut a key-value cache at a position and packed rows rely on position ids: recurrent state, sliding windows and
    chunks survive neither, and the numbers would be wrong without a sign.
    """
    if found := plain_obstacles(model.config, stateful=model._is_stateful):
        raise _not_plain(f"{type(model).__name__} ({model.config.name_or_path})", found)


def require_room(config: PreTrainedConfig, *, lengths: Mapping[str, int], remedy: str) -> None:
    """Raise ModelError if a row is longer than the model's context. lengths: tokens by response id, prompt included."""
    longest = max(lengths, key=lambda row: lengths[row])
    if lengths[longest] > (limit := context_length(config)):
        raise ModelError(
            f"model: response {longest} and its prompt have {lengths[longest]} tokens, the model takes {limit}"
            f"{_of_rotary(config)}; {remedy}"
        )


def require_steady_rotary(model: PreTrainedModel, *, length: int) -> None:
    """Raise ModelError if rotary embeddings change before a row of `length` tokens ends: an engine that keeps keys would
    continue with the old ones, and the rows of a batch would depend on each other."""
    switch = rotary_switch(model.config)
    if switch is not None and length > switch:
        raise ModelError(
            f"{type(model).__name__} ({model.config.name_or_path}): prompt and max_new_tokens come to {length} tokens, and"
            f" the model takes {switch}{_of_rotary(model.config)}; lower max_new_tokens"
        )


def _of_rotary(config: PreTrainedConfig) -> str:
    switch = rotary_switch(config)
    return f" (beyond {switch} its rotary embeddings depend on the longest row)" if switch is not None else ""


def require_rows(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Every token has a row of the embedding, but for padding, which is never looked up."""
    rows = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if not isinstance(rows, int):
        return
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows and token != tokenizer.pad_token}
    if beyond:
        last = max(beyond, key=lambda token: beyond[token])
        raise ModelError(
            f"model.path={spec.path}: the tokenizer has ids up to {beyond[last]} ({last!r}), but the model's embedding has "
            f"{rows} rows; the tokenizer belongs to another model, or tokens were added without "
            "model.resize_token_embeddings"
        )


def require_attention(spec: ModelSpec, config: PreTrainedConfig) -> None:
    """What transformers would refuse with advice of its own: here with the reason and what to set."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    offered = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}.get(spec.attn_implementation)
    if kind is None and config.is_encoder_decoder:
        raise _not_plain(f"{type(config).__name__} ({spec.path})", plain_obstacles(config, stateful=False))
    if kind is None or offered is None or getattr(kind, offered, True):
        return
    if found := plain_obstacles(config, stateful=kind._is_stateful):
        raise _not_plain(f"{kind.__name__} ({spec.path})", found)
    why = f" ({', '.join(found)})" if (found := fork_obstacles(config)) else ""
    engine = " engine=reference" if found or not kind._supports_attention_backend else ""
    raise ModelError(
        f"model.attn_implementation={spec.attn_implementation}: {kind.__name__} ({spec.path}) computes its attention by "
        f"itself{why}, which transformers offers no {spec.attn_implementation} for; set model.attn_implementation=eager{engine}"
    )


def _not_plain(what: str, found: Sequence[str]) -> ModelError:
    return ModelError(
        f"{what} has {' and '.join(found)}; cutting its cache or packing rows would change its answers; choose a model "
        "whose layers all use full attention, such as model=qwen2.5-0.5b"
    )


def plain_obstacles(config: PreTrainedConfig, *, stateful: bool) -> list[str]:
    """Why cutting a cache or packing rows would change this model's answers; [] where every layer attends to all
    earlier tokens. stateful: `PreTrainedModel._is_stateful` of its class."""
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ())
    found = []
    if stateful or kinds & _RECURRENT:
        found.append("a recurrent state (state space or linear attention) in place of a cache that can be cut")
    if getattr(config, "is_encoder_decoder", False):
        found.append("an encoder beside its decoder")
    window = _window(text)
    # A window no shorter than the context hides nothing.
    if window is not None and window < context_length(config):
        found.append(f"attention to a window of {window} tokens (sliding, local or chunked layers)")
    known = {"full_attention", "attention", "sliding_attention", "chunked_attention", "global", "local", *_RECURRENT}
    if unknown := kinds - known:
        found.append(f"layers of the kind {', '.join(sorted(unknown))}")
    return found


def fork_obstacles(config: PreTrainedConfig) -> list[str]:
    """What this model's attention adds to a softmax over scores, which `cft/engines/attention.py` does not."""
    text = config.get_text_config(decoder=True)
    found = []
    if getattr(text, "alibi", False) or text.model_type in ("bloom", "mpt"):
        found.append("ALiBi biases on the scores")
    if getattr(text, "attn_logit_softcapping", None):
        found.append("soft-capping of the scores")
    if text.model_type == "gpt_oss":
        found.append("attention sinks")
    return found


def context_length(config: PreTrainedConfig) -> int:
    """The most tokens of prompt and response together. Rotary embeddings of the kinds longrope and dynamic change all
    positions once a row, or any other row of its batch, passes a length; up to there no row depends on another."""
    text = config.get_text_config(decoder=True)
    lengths = [n for name in _LENGTHS if isinstance(n := getattr(text, name, None), int)]
    return min([*lengths[:1], *_rotary_switches(text)], default=sys.maxsize)


def rotary_switch(config: PreTrainedConfig) -> int | None:
    """The length from which on rotary embeddings depend on the longest row of a batch, None where they never do."""
    return min(_rotary_switches(config.get_text_config(decoder=True)), default=None)


def _window(text: Any) -> int | None:
    """The shortest window of any layer, None where all see everything."""
    kinds = set(getattr(text, "layer_types", None) or ())
    sliding, chunk = getattr(text, "sliding_window", None), getattr(text, "attention_chunk_size", None)
    windows = []
    if sliding and (not kinds or "sliding_attention" in kinds):
        windows.append(int(sliding))
    if chunk and "chunked_attention" in kinds:
        windows.append(int(chunk))
    if "local" in (getattr(text, "attention_layers", None) or ()):  # GPT-Neo
        windows.append(int(text.window_size))
    return min(windows, default=None)


def _rotary_switches(text: Any) -> Iterator[int]:
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    # One set of parameters, or one for each kind of layer.
    sets = [part for part in rope.values() if isinstance(part, Mapping)] or [rope]
    for part in sets:
        kind = part.get("rope_type", part.get("type"))
        if kind == "longrope":
            original = part.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None)
            yield int(original or text.max_position_embeddings)
        elif kind == "dynamic":
            yield int(text.max_position_embeddings)
