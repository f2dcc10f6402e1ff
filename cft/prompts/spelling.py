"""Encodes a frame (the template's text) that contains user texts, with character spans. Only the frame yields special tokens.

Before a text is inserted into the frame, a BREAK character is inserted into each spelling of a special token (`broken`). In the
combined text, the remaining special tokens are those of the frame, and everything between them is encoded as ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cft.prompts.chat import BREAK, TextError, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded text.

    Args:
        text: the text.
        ids: [L] int32 token ids.
        span: [L, 2] int32, character range of each token in `text`, end exclusive; characters between two tokens belong to the
            later one.
        special: [L] bool, whether a token is special.
    """

    text: str
    ids: NDArray[np.int32]
    span: NDArray[np.int32]
    special: NDArray[np.bool_]

    def tokens(self, start: int, end: int) -> tuple[int, int]:
        """The tokens [first, last) that overlap the characters [start, end); an empty range if there are none."""
        inside = np.flatnonzero((self.span[:, 1] > start) & (self.span[:, 0] < end))
        return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (len(self.ids), len(self.ids))


def broken(value: Any, spelt: Collection[str]) -> Any:
    """The JSON value with BREAK inserted into all spellings of the special tokens `spelt`; other BREAKs are removed."""
    if isinstance(value, str):
        text = value.replace(BREAK, "")
        return _pattern(spelt).sub(lambda found: found[0][:1] + BREAK + found[0][1:], text)
    if isinstance(value, Mapping):
        return {broken(key, spelt): broken(inner, spelt) for key, inner in value.items()}
    return [broken(inner, spelt) for inner in value] if isinstance(value, list | tuple) else value


def without_breaks(text: str) -> str:
    return text.replace(BREAK, "")


def encoded_frame(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoded:
    """Encode a frame with inserted `broken` texts. Raises TextError if the tokenizer cannot keep frame and texts apart."""
    special = special_tokens(tokenizer)
    pieces = _pieces(text, special)
    frame = sum(is_special for _, is_special in pieces)
    if BREAK not in text:
        made = _of_pieces(tokenizer, [(text, True)], special)
        if int(made.special.sum()) != frame:  # such as <unk>
            texts = [made.text[start:end] for start, end in made.span[made.special].tolist()]
            unknown = next((text for text in texts if text.strip() not in special), "")
            raise TextError(f"the tokenizer cannot spell this text: it does not know {unknown[:20]!r}")
        return made
    made = _of_pieces(tokenizer, pieces, special)
    # Tokenizers that treat the start of a text specially (e.g., add a space) cannot encode piece by piece.
    bare = _pattern([key[:1] + BREAK + key[1:] for key in special]).sub("", text)
    whole, cut = _of_pieces(tokenizer, [(bare, True)], special), _of_pieces(tokenizer, _pieces(bare, special), special)
    if whole.ids.tolist() != cut.ids.tolist() or int(made.special.sum()) != frame:
        raise TextError("it spells a special token, which this tokenizer cannot encode as text")
    return made


def _pieces(text: str, special: Mapping[str, int]) -> list[tuple[str, bool]]:
    """[(piece without breaks, whether it is one special token)]"""
    pieces: list[tuple[str, bool]] = []
    start = 0
    for found in _pattern(special).finditer(text):
        pieces += [(without_breaks(text[start : found.start()]), False), (found[0], True)]
        start = found.end()
    return [(piece, is_special) for piece, is_special in (*pieces, (without_breaks(text[start:]), False)) if piece]


def _of_pieces(
    tokenizer: PreTrainedTokenizerBase, pieces: list[tuple[str, bool]], special: Mapping[str, int]
) -> Encoded:
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    at = 0
    for text, may_be_special in pieces:
        found = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=not may_be_special
        )
        ids += found["input_ids"]
        spans += [(at + start, at + end) for start, end in found["offset_mapping"]]
        at += len(text)
    span = np.array(spans, dtype=np.int32).reshape(-1, 2)
    if len(span) > 1:  # some tokenizers omit the space from the span of the token that contains it
        before = span[:-1, 1]
        span[1:, 0] = np.where(before < span[1:, 0], before, span[1:, 0])
    values = set(special.values())
    return Encoded(
        "".join(text for text, _ in pieces),
        np.array(ids, dtype=np.int32),
        span,
        np.array([token in values for token in ids], dtype=bool),
    )


def _pattern(texts: Collection[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or "(?!)")
