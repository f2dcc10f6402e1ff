"""Where each token of a response stands in its text, from token ids alone (nothing is encoded again)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | NDArray[np.int32]) -> str:
    """Text of response ids: special tokens left out, spaces as the tokenizer has them."""
    text = tokenizer.decode([int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def char_spans(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | NDArray[np.int32]
) -> tuple[str, NDArray[np.int32]]:
    """(text, spans [R, 2] int32, end exclusive). Special tokens get an empty span.

    A token adds what the decoded prefix grows by, measured as the common prefix with the whole text: a token that
    holds only some bytes of a character decodes to a replacement sign first. Such a token gets the character it
    begins, so that spans of one character's tokens overlap rather than vanish.
    """
    ids = [int(i) for i in ids]
    text = decode(tokenizer, ids)
    special = frozenset(tokenizer.all_special_ids)
    spans = np.zeros((len(ids), 2), dtype=np.int32)
    start = 0
    for t, token in enumerate(ids):
        end = max(start, _common_prefix(decode(tokenizer, ids[: t + 1]), text))
        if end == start and token not in special:
            spans[t] = start, min(start + 1, len(text))
        else:
            spans[t] = start, end
        start = end
    return text, spans


def _common_prefix(a: str, b: str) -> int:
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
