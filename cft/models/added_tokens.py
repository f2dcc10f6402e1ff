"""Added tokens (`model.added_tokens`): new entries of the tokenizer, and rows of the embedding and the head.

Each new row is the mean of the existing rows (https://nlp.stanford.edu/~johnhew/vocab-expansion.html), so that an untrained
token is no more probable than an average one. No random numbers are used; the result is always the same model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def add_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Add the missing texts to the tokenizer as special tokens, one token each in any context. Returns their ids."""
    from transformers import AddedToken

    new = [text for text in dict.fromkeys(texts) if text not in tokenizer.get_vocab()]
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in new])
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[text] for text in new]


def with_rows(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The config, with `vocab_size` raised to the size of the tokenizer if needed; many models have spare rows."""
    inner = config.get_text_config(decoder=True)
    inner.vocab_size = max(inner.vocab_size, len(tokenizer))
    return config


def add_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new: Collection[int]) -> None:
    """Set the rows of the embedding and the head of the tokens `new`, adding rows if needed."""
    import torch

    own = sorted(set(tokenizer.get_vocab().values()) - set(new))
    embedding: Any = model.get_input_embeddings()
    if len(tokenizer) > embedding.weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ends: list[Any] = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    with torch.no_grad():
        for weight_VD in {id(end.weight): end.weight for end in ends}.values():  # a single one if they are tied
            weight_VD[sorted(new)] = weight_VD[own].double().mean(0).to(weight_VD.dtype)
