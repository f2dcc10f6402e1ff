"""Text of a response and character spans of its tokens, from token ids alone (without encoding the text again)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Common spellings of tokens that begin or end a turn or a text; markup of a response such as <answer> does not match.
_CONTROL = re.compile(
    r"<[|｜].*[|｜]>|</?s>|<(?:start|end)_of_\w+>|<(?:eos|bos|pad|unk|mask|cls|sep)>|\[/?(?:INST|PAD|CLS|SEP|MASK|UNK)\]",
    re.IGNORECASE | re.DOTALL,
)


_WINDOW, _CONTEXT = 32, 4  # tokens decoded together, and context tokens before them


@lru_cache(maxsize=1)
def hidden_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the special tokens that are not text: end, beginning, padding, and those that chat templates put around turns.

    Other special tokens (of a model that was trained to write <answer>) are part of the text.
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
    """Text of response ids, without the special tokens of `hidden_ids` except those in `shown`; spaces are not cleaned up."""
    hidden = hidden_ids(tokenizer).difference(shown)
    kept = [int(i) for i in ids if int(i) not in hidden]
    text = tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def char_spans(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | NDArray[np.int32]
) -> tuple[str, NDArray[np.int32]]:
    """Text of a response and the span of each token: [R, 2] int32, end exclusive; hidden tokens have an empty span.

    The span of a token is the growth of the decoded prefix, measured as the common prefix with the whole text, because a token
    with only some bytes of a character first decodes to a replacement character. Such a token gets the character that it
    begins, so that spans of tokens of one character overlap instead of being empty.
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
    """Number of characters of the text that are known after each token. Decodes `window` tokens and a few before them at a
    time, so that the time is linear in the length; [] if a tokenizer's texts cannot be concatenated in this way."""
    ends: list[int] = []
    at = 0  # number of characters before the window; a window ends at the end of a character
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
