"""Tokens that end a response: of the checkpoint, of its tokenizer, of the prompt and of the config."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from cft.models.architecture import ModelError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from cft.models.load import ModelSpec


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end a response, rising: of the generation config and of the tokenizer. Raises ModelError if none."""
    return all_eos_ids(model.generation_config, tokenizer, name=str(model.config.name_or_path))


def all_eos_ids(
    generation: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    further: Collection[int] = (),
) -> tuple[int, ...]:
    """The same without a model. name: of the model, for the message. further: what the spec and the prompt add."""
    of_model = generation.eos_token_id if generation is not None else None
    of_tokenizer: Any = tokenizer.eos_token_id
    ids = tuple(sorted({*listed(of_model), *listed(of_tokenizer), *further}))
    if not ids:
        raise ModelError(
            f"{name}: neither generation_config.json nor the tokenizer names an end-of-sequence token, so no response could "
            "end; name one in model.eos_tokens"
        )
    return ids


def further_eos_ids(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, *, ends: Collection[int | None]) -> set[int]:
    """Tokens that end a response beside the checkpoint's own: the prompt's and those of the spec. Raises ModelError."""
    vocabulary = tokenizer.get_vocab()
    if unknown := [token for token in spec.eos_tokens if token not in vocabulary]:
        raise ModelError(
            f"model.eos_tokens={list(spec.eos_tokens)}: {unknown[0]!r} is not in the vocabulary of {spec.path}"
        )
    return {end for end in ends if end is not None} | {int(vocabulary[token]) for token in spec.eos_tokens}


def listed(ids: int | Sequence[int] | None) -> list[int]:
    return [ids] if isinstance(ids, int) else [int(token) for token in ids or ()]
