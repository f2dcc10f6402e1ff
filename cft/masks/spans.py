"""Masks by position and text of a token: all, numbers, the first tokens, the final answer."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from cft.masks.base import MaskError, RowMask, Weights, hash_of
from cft.ranges import AtLeastOne, Fraction, in_range
from cft.types import AnnotatedResponse


class All(RowMask):
    """Every response token, EOS included: plain supervised fine-tuning."""

    def __call__(self, row: AnnotatedResponse) -> Weights:
        return np.ones(len(row.response_ids), dtype=np.float32)


class Numeric(RowMask):
    """Tokens whose text holds a digit (the paper's ablation)."""

    def __call__(self, row: AnnotatedResponse) -> Weights:
        texts = (row.response[start:end] for start, end in row.char_span.tolist())
        return np.array([any(c.isdigit() for c in text) for text in texts], dtype=np.float32)


class Prefix(RowMask):
    """The first tokens of a response (after UPFT, arXiv 2503.02875; all of it: `cft/data/prefix.py`). The EOS of a shorter
    response is not learned.

    Args:
        num_tokens: tokens from the start of the response, at least 1. The paper uses 8, 32 or 128, by model.
        full_fraction: fraction of the responses, 0 to 1, that are used whole, EOS included; chosen by a hash of their ids.
    """

    @in_range
    def __init__(self, *, num_tokens: AtLeastOne, full_fraction: Fraction = 0.0) -> None:
        self.num_tokens, self.full_fraction = num_tokens, full_fraction

    def __call__(self, row: AnnotatedResponse) -> Weights:
        length = len(row.response_ids)
        if hash_of("full", row.response_id) / 2**64 < self.full_fraction:
            return np.ones(length, dtype=np.float32)
        position = np.arange(length)
        ends = row.finish == "stop"
        return ((position < self.num_tokens) & (position < length - ends)).astype(np.float32)


class AnswerSpan(RowMask):
    """Tokens that overlap the final answer: the first matching group of the pattern's last match.

    Args:
        pattern: a regular expression, searched in the response's text.
        with_end: whether the EOS that ends such a response counts too (SFTKey's second stage, arXiv 2512.21017).

    Raises:
        MaskError: `pattern` is not a regular expression.
    """

    def __init__(self, *, pattern: str, with_end: bool = False) -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise MaskError(f"mask.pattern: not a regular expression ({error}): {pattern!r}") from error
        self.with_end = with_end

    def __call__(self, row: AnnotatedResponse) -> Weights:
        matches = list(self.pattern.finditer(row.response))
        if not matches:
            return np.zeros(len(row.response_ids), dtype=np.float32)
        last = matches[-1]
        group = next((i for i in range(1, (last.re.groups or 0) + 1) if last.group(i) is not None), 0)
        weights = overlap(row.char_span, *last.span(group))
        if self.with_end and row.finish == "stop":
            weights[-1] = 1.0
        return weights


def overlap(char_span: NDArray[np.int32], start: int, end: int) -> Weights:
    """[R] 1 where a token's characters overlap [start, end)."""
    return ((char_span[:, 0] < end) & (char_span[:, 1] > start)).astype(np.float32)
