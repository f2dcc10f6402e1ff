"""Tokens that end a response, from the checkpoint, its tokenizer, the prompt format and the config."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from cft.models.architecture import ModelError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from cft.models.load import ModelSpec


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end a response, ascending, from the generation config and the tokenizer. Raises ModelError if none."""
    return all_eos_ids(model.generation_config, tokenizer, name=str(model.config.name_or_path))


def all_eos_ids(
    generation: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    further: Collection[int] = (),
) -> tuple[int, ...]:
    """Like `eos_ids`, without a model. name: of the model, for the message. further: ids from the spec and the prompt."""
    of_model = generation.eos_token_id if generation is not None else None
    of_tokenizer: Any = tokenizer.eos_token_id
    ids = tuple(sorted({*listed(of_model), *listed(of_tokenizer), *further}))
    if not ids:
        raise ModelError(
            f"{name}: neither generation_config.json nor the tokenizer defines an end-of-sequence token, so no response could "
            "end; name one in model.eos_tokens"
        )
    return ids


def further_eos_ids(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, *, ends: Collection[int | None]) -> set[int]:
    """Tokens that end a response in addition to the checkpoint's own: those of the prompt (`ends`) and of the spec. Raises
    ModelError if one is not in the vocabulary."""
    vocabulary = tokenizer.get_vocab()
    if unknown := [token for token in spec.eos_tokens if token not in vocabulary]:
        raise ModelError(
            f"model.eos_tokens={list(spec.eos_tokens)}: {unknown[0]!r} is not in the vocabulary of {spec.path}"
        )
    return {end for end in ends if end is not None} | {int(vocabulary[token]) for token in spec.eos_tokens}


def listed(ids: int | Sequence[int] | None) -> list[int]:
    return [ids] if isinstance(ids, int) else [int(token) for token in ids or ()]
