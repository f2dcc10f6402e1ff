"""Where each token of a response is in its text, from token ids alone (nothing is encoded again)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# What ends or begins a turn or a text, by the spellings in use; <answer> and other markup of a response is none.
_CONTROL = re.compile(
    r"<[|｜].*[|｜]>|</?s>|<(?:start|end)_of_\w+>|<(?:eos|bos|pad|unk|mask|cls|sep)>|\[/?(?:INST|PAD|CLS|SEP|MASK|UNK)\]",
    re.IGNORECASE | re.DOTALL,
)


_WINDOW, _CONTEXT = 32, 4  # tokens that are decoded together, and before them


@lru_cache(maxsize=1)
def hidden_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the special tokens that are no text: end, beginning, padding, and what a chat template writes around turns.

    A special token of another kind (a model that was trained to write <answer>) is part of what it says.
    """
    named = {getattr(tokenizer, f"{name}_token_id", None) for name in ("eos", "bos", "pad", "unk")}
    special = list(tokenizer.all_special_ids)
    texts = [str(tokenizer.decode([token], skip_special_tokens=False)) for token in special]
    control = {
        token for token, text in zip(special, texts, strict=True) if not text or _CONTROL.fullmatch(text.strip())
    }
    return frozenset(token for token in named | control if token is not None)


def decode(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | NDArray[np.int32], *, shown: Collection[int] = ()
) -> str:
    """Text of response ids: special tokens that are no text (`hidden_ids`) left out but for those of `shown`, spaces as the
    tokenizer has them."""
    hidden = hidden_ids(tokenizer).difference(shown)
    kept = [int(i) for i in ids if int(i) not in hidden]
    text = tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def char_spans(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | NDArray[np.int32]
) -> tuple[str, NDArray[np.int32]]:
    """(text, spans [R, 2] int32, end exclusive). Hidden tokens get an empty span.

    A token adds what the decoded prefix grows by, measured as the common prefix with the whole text: a token that
    holds only some bytes of a character decodes to a replacement sign first. Such a token gets the character it
    begins, so that spans of one character's tokens overlap rather than vanish.
    """
    ids = [int(i) for i in ids]
    text = decode(tokenizer, ids)
    hidden = hidden_ids(tokenizer)
    ends = _ends(tokenizer, ids, text, window=_WINDOW) or _ends(tokenizer, ids, text, window=len(ids))
    spans = np.zeros((len(ids), 2), dtype=np.int32)
    start = 0
    for t, token in enumerate(ids):
        end = max(start, ends[t])
        if end == start and token not in hidden:
            spans[t] = start, min(start + 1, len(text))
        else:
            spans[t] = start, end
        start = end
    return text, spans


def _ends(tokenizer: PreTrainedTokenizerBase, ids: list[int], text: str, *, window: int) -> list[int]:
    """How far the text is known after each token. What is decoded is `window` tokens and a few before them, so that a long
    response takes no quadratic time; [] where a tokenizer's texts cannot be put together so."""
    ends: list[int] = []
    at = 0  # characters of the tokens before the window, which ends where a character does
    while len(ends) < len(ids):
        first = len(ends)
        context = max(0, first - _CONTEXT)
        before = len(decode(tokenizer, ids[context:first]))
        whole = first
        for t in range(first, min(first + window, len(ids))):
            piece = decode(tokenizer, ids[context : t + 1])[before:]
            known = _common_prefix(piece, text[at : at + len(piece)])
            ends.append(at + known)
            if known == len(piece):
                whole = t + 1
        if window >= len(ids):
            return ends
        if whole == first:
            return []
        del ends[whole:]
        at = ends[-1]
    return ends if at == len(text) else []


def _common_prefix(a: str, b: str) -> int:
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
