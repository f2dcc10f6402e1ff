"""Masks that tell a response's thinking from what follows it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from cft.masks.base import MaskError, RowMask, Weights
from cft.masks.spans import overlap
from cft.types import AnnotatedResponse


class Thinking(RowMask):
    """The tokens of the thinking, tags included; none of a response that has no closing tag and no opening one.

    Where the prompt opens the thinking, as templates of reasoning models do, it lasts from the start of the turn. One that
    is never closed lasts to the end of the turn.

    Args:
        open: the tag before the thinking.
        close: the tag after it.

    Raises:
        MaskError: an empty tag, or the same one twice.
    """

    def __init__(self, *, open: str = "<think>", close: str = "</think>") -> None:
        if not open or not close or open == close:
            raise MaskError(f"mask.open={open!r}, mask.close={close!r}: expected two tags that differ")
        self.open, self.close = open, close

    def __call__(self, row: AnnotatedResponse) -> Weights:
        weights = np.zeros(len(row.response_ids), dtype=np.float32)
        for start, end in self.spans(row):
            weights = np.maximum(weights, overlap(row.char_span, start, end))
        return weights

    def spans(self, row: AnnotatedResponse) -> list[tuple[int, int]]:
        """Characters of the thinking of each turn."""
        found = []
        for start, end in turns(row):
            text = row.response[start:end]
            opened, closed = text.find(self.open), text.rfind(self.close)
            if closed >= 0:
                first = opened if 0 <= opened < closed else 0
                found.append((start + first, start + closed + len(self.close)))
            elif opened >= 0:
                found.append((start + opened, end))
        return found


class AfterThinking(Thinking):
    """The tokens that are not of the thinking: what the reader of a response is given, and its end.

    Args:
        open: the tag before the thinking.
        close: the tag after it.
    """

    def __call__(self, row: AnnotatedResponse) -> Weights:
        return 1 - super().__call__(row)


def turns(row: AnnotatedResponse) -> list[tuple[int, int]]:
    """Characters of each turn of a response: a token without text ends one."""
    ends = [int(end) for start, end in row.char_span.tolist() if start == end]
    borders = sorted({0, *ends, len(row.response)})
    return list(pairwise(borders))
