"""What a model's config implies about attention and positions, and which engines and layouts it supports.

    packing_obstacles   why packed rows are wrong for it: recurrent state, ALiBi, chunks
    fork_obstacles      why engine=shared_prefix is wrong for it: also soft-capped scores, attention sinks
    paging_obstacles    why engine=continuous is wrong for it: recurrent state, chunks, attention code of its own
    window              maximum number of tokens that a layer attends to, if less than the context
    require_*           errors with the reason when a stage does not support a model, before weights are loaded if possible
    context_length      maximum tokens of a row, limited by the length at which rotary embeddings begin to depend on it

Every decoder trains with `compute.layout=padded` and decodes with `engine=reference`; only encoders are refused altogether.
Everything here is derived from the config, so that errors are raised before weights are loaded. What the config does not show
is found by numerical checks (`SharedPrefixEngine._self_check`, `SelectiveLM.check_layout`, `ReferenceEngine.cached`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cft.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from cft.models.load import ModelSpec

# Names of the context length in configs; ALiBi has none.
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_RECURRENT = {
    *("linear_attention", "mamba", "mamba2", "recurrent", "conv", "short_conv"),
    *("hybrid", "hybrid_sliding"),  # attention and a state space in parallel in each layer
}
_ATTENTION = {"full_attention", "attention", "sliding_attention", "chunked_attention", "global", "local"}
_NO_MIXER = {"moe", "mlp"}  # layers that do not mix positions


class ModelError(UserError, ValueError):
    """A model or tokenizer that is not available or not usable; the message names the key to change."""


def require_packable(config: PreTrainedConfig) -> None:
    """Raise ModelError if packed rows would influence each other in spite of the attention mask."""
    if found := packing_obstacles(config):
        raise ModelError(
            f"compute.layout=packed: {class_name(config)} ({config.name_or_path}) has {' and '.join(found)}, through which "
            "packed rows would influence each other; set compute.layout=padded"
        )


def require_room(config: PreTrainedConfig, *, lengths: Mapping[str, int], remedy: str) -> None:
    """Raise ModelError if a row is longer than the model's context. lengths: tokens by response id, prompt included."""
    longest = max(lengths, key=lambda row: lengths[row])
    if lengths[longest] > (limit := context_length(config)):
        raise ModelError(
            f"model: response {longest} and its prompt have {lengths[longest]} tokens, the model takes {limit}"
            f"{_of_rotary(config)}; {remedy}"
        )


def require_steady_rotary(model: PreTrainedModel, *, length: int) -> None:
    """Raise ModelError if rotary embeddings change within a row of `length` tokens: an engine with a KV cache would continue
    with outdated keys, and the rows of a batch would depend on each other."""
    switch = rotary_switch(model.config)
    if switch is not None and length > switch:
        raise ModelError(
            f"{type(model).__name__} ({model.config.name_or_path}): prompt and max_new_tokens add up to {length} tokens, and"
            f" the model takes {switch}{_of_rotary(model.config)}; lower max_new_tokens"
        )


def _of_rotary(config: PreTrainedConfig) -> str:
    switch = rotary_switch(config)
    return f" (beyond {switch} its rotary embeddings depend on the longest row)" if switch is not None else ""


def require_rows(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Raise ModelError if a token has no row in the embedding; the padding token is exempt, since it is never looked up."""
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


def require_attention(spec: ModelSpec, config: PreTrainedConfig, *, attention: str) -> None:
    """Raise ModelError if transformers would refuse the model with this attention; the message says why and what to set.

    attention: from `loaded_attention`.
    """
    kind, name = model_class(config), f"{class_name(config)} ({spec.path})"
    if config.is_encoder_decoder:
        raise ModelError(
            f"{name} has an encoder and a decoder, but responses are continuations of a single token sequence; choose a causal "
            "language model"
        )
    # Before 5.20, transformers offered models with soft-capping an attention function that ignores the cap.
    if offers_attention(kind, attention) and not (
        attention == "sdpa" and _soft_cap(config.get_text_config(decoder=True))
    ):
        return
    why = f" ({', '.join(found)})" if (found := fork_obstacles(config)) else ""
    engine = "" if not found and kind._supports_attention_backend else " engine=reference"
    raise ModelError(
        f"model.attn_implementation={spec.attn_implementation}: {name} computes attention in its own code{why}, for which "
        f"transformers has no {spec.attn_implementation}; set model.attn_implementation=eager{engine}"
    )


def offers_attention(kind: type[PreTrainedModel] | None, attention: str) -> bool:
    """Whether transformers can load the class (None: unknown) with this attention. A class without attention accepts any."""
    offered = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}.get(attention)
    return kind is None or offered is None or getattr(kind, offered, True)


def loaded_attention(config: PreTrainedConfig, *, asked: str) -> str:
    """`asked`, or eager if the model has no attention (Mamba)."""
    kinds = _kinds(config.get_text_config(decoder=True))
    return asked if kinds & {*_ATTENTION, "hybrid", "hybrid_sliding"} or not is_recurrent(config) else "eager"


def model_class(config: PreTrainedConfig) -> Any:
    """The model class of a config, without loading the model; None if the model brings its own code."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)


def class_name(config: PreTrainedConfig) -> str:
    return getattr(model_class(config), "__name__", type(config).__name__)


def is_recurrent(config: PreTrainedConfig) -> bool:
    """Whether some layer carries a state from token to token, in place of keys that can be cut."""
    kinds = _kinds(config.get_text_config(decoder=True))
    stateful = bool(getattr(model_class(config), "_is_stateful", False))
    return bool(kinds & _RECURRENT) or (stateful and not kinds)


def packing_obstacles(config: PreTrainedConfig) -> list[str]:
    """Why packed rows would influence each other; [] if an attention mask (which includes windows) separates them."""
    text = config.get_text_config(decoder=True)
    return [*_states(config), *_chunks(text), *_alibi(text), *_unknown(text)]


def fork_obstacles(config: PreTrainedConfig) -> list[str]:
    """Why keys of a prefix cannot be shared, or what `cft/engines/attention.py` does not support besides a plain softmax."""
    text = config.get_text_config(decoder=True)
    found = [*_states(config), *_chunks(text), *_alibi(text), *_unknown(text), *_soft_cap(text)]
    if text.model_type == "gpt_oss":
        found.append("attention sinks")
    return found


def paging_obstacles(config: PreTrainedConfig) -> list[str]:
    """Why transformers' continuous batching would decode incorrectly with the model."""
    text = config.get_text_config(decoder=True)
    found = [*_states(config), *_chunks(text), *_unknown(text)]
    if not getattr(model_class(config), "_supports_attention_backend", True):
        found += _alibi(text) or ["attention code of its own, which cannot be replaced"]
    return found


def _kinds(text: Any) -> set[str]:
    return set(getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ())


def _states(config: PreTrainedConfig) -> list[str]:
    return ["a recurrent state (state space, convolution or linear attention)"] if is_recurrent(config) else []


def _chunks(text: Any) -> list[str]:
    chunk = getattr(text, "attention_chunk_size", None)
    return [f"attention to chunks of {chunk} tokens"] if chunk and "chunked_attention" in _kinds(text) else []


def _soft_cap(text: Any) -> list[str]:
    return ["soft-capping of the scores"] if getattr(text, "attn_logit_softcapping", None) else []


def _alibi(text: Any) -> list[str]:
    biased = getattr(text, "alibi", False) or text.model_type in ("bloom", "mpt")
    return ["ALiBi biases on the scores"] if biased else []


def _unknown(text: Any) -> list[str]:
    unknown = _kinds(text) - _ATTENTION - _RECURRENT - _NO_MIXER
    return [f"layers of the kind {', '.join(sorted(unknown))}"] if unknown else []


def context_length(config: PreTrainedConfig) -> int:
    """Maximum tokens of prompt and response together. Rotary embeddings of the kinds longrope and dynamic change at all
    positions once any row of a batch exceeds a length; up to that length, rows are independent."""
    text = config.get_text_config(decoder=True)
    lengths = [n for name in _LENGTHS if isinstance(n := getattr(text, name, None), int)]
    return min([*lengths[:1], *_rotary_switches(text)], default=sys.maxsize)


def rotary_switch(config: PreTrainedConfig) -> int | None:
    """The length beyond which rotary embeddings depend on the longest row of a batch, None if they never do."""
    return min(_rotary_switches(config.get_text_config(decoder=True)), default=None)


def window(config: PreTrainedConfig) -> int | None:
    """The shortest attention window of all layers, in tokens including the newest; None if all attend to the whole context."""
    text = config.get_text_config(decoder=True)
    kinds, sliding = _kinds(text), getattr(text, "sliding_window", None)
    windows = []
    if sliding and (not kinds or kinds & {"sliding_attention", "hybrid_sliding"}):
        windows.append(int(sliding))
    if "local" in (getattr(text, "attention_layers", None) or ()):  # GPT-Neo
        windows.append(int(text.window_size))
    # A window that is not shorter than the context has no effect.
    return min((w for w in windows if w < context_length(config)), default=None)


def attention_layers(config: PreTrainedConfig) -> tuple[int, int]:
    """How many layers attend to all earlier tokens, and how many to a window."""
    text = config.get_text_config(decoder=True)
    layers = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    layers = list(layers or getattr(text, "attention_layers", None) or ())
    if not layers:
        count = int(text.num_hidden_layers)
        return (0, count) if window(config) is not None else (count, 0)
    windowed = sum(kind in ("sliding_attention", "hybrid_sliding", "local") for kind in layers)
    whole = sum(kind in {*_ATTENTION, "hybrid"} for kind in layers) - sum(
        kind in ("sliding_attention", "local") for kind in layers
    )
    return (whole, windowed) if window(config) is not None else (whole + windowed, 0)


def _rotary_switches(text: Any) -> Iterator[int]:
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    # One set of parameters, or one per kind of layer.
    sets = [part for part in rope.values() if isinstance(part, Mapping)] or [rope]
    for part in sets:
        kind = part.get("rope_type", part.get("type"))
        if kind == "longrope":
            original = part.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None)
            yield int(original or text.max_position_embeddings)
        elif kind == "dynamic":
            yield int(text.max_position_embeddings)
