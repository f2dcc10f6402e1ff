"""Coarse kinds of tokens by their text, for statistics of which tokens are critical."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cft.types import AnnotatedResponse

KINDS = ("digit", "operator", "word", "punctuation", "line break", "end")
_OPERATOR = re.compile(r"[-+*/=×÷·^<>≤≥%$−]+|\\(?:times|div|cdot|frac|sqrt|pm)|(?:plus|minus|times|divided)\b")


@dataclass(frozen=True, slots=True)
class KindCount:
    """Counts of one kind. tokens: tokens for which the mask is known. critical: tokens that the mask selects."""

    kind: str
    tokens: int
    critical: int


def kind_of(text: str) -> str:
    """Kind of a token's text; "" is a token without text, which is the end of the response."""
    stripped = text.strip()
    if not text:
        return "end"
    if any(char.isdigit() for char in stripped):
        return "digit"
    if _OPERATOR.fullmatch(stripped):
        return "operator"
    if any(char.isalpha() for char in stripped):
        return "word"
    return "line break" if not stripped and "\n" in text else "punctuation"


def token_texts(row: AnnotatedResponse) -> list[str]:
    """Text of each response token, by its span; a character shared by several tokens is assigned to the first."""
    texts, end = [], 0
    for start, stop in row.char_span.tolist():
        texts.append(row.response[max(start, end) : stop])
        end = max(end, stop)
    return texts


def count_kinds(
    rows: Sequence[AnnotatedResponse],
    *,
    mask: Callable[[AnnotatedResponse], NDArray[np.float32]],
    known: Callable[[AnnotatedResponse], NDArray[np.bool_]] | None = None,
) -> list[KindCount]:
    """Counts over all rows, in the order of KINDS, without kinds that do not occur. known: tokens to count, None = all."""
    tokens: Counter[str] = Counter()
    critical: Counter[str] = Counter()
    for row in rows:
        counting = known(row) if known else np.ones(len(row.response_ids), dtype=np.bool_)
        for text, weight, counts in zip(token_texts(row), mask(row).tolist(), counting, strict=True):
            if not counts:
                continue
            kind = kind_of(text)
            tokens[kind] += 1
            critical[kind] += weight > 0
    return [KindCount(kind, tokens[kind], critical[kind]) for kind in KINDS if tokens[kind]]
