"""Masks that separate the thinking of a response from the rest, as verifiers do (`cft/verifiers/thinking.py`)."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np

from cft.masks.base import MaskError, RowMask, Weights
from cft.masks.spans import overlap
from cft.types import AnnotatedResponse


class Thinking(RowMask):
    """The tokens of the thinking, tags included; none if a response has neither tag.

    If the prompt opens the thinking, as templates of reasoning models do, it starts with the turn. If it is never closed, it
    lasts to the end of the turn.

    Args:
        open: the tag before the thinking.
        close: the tag after it.

    Raises:
        MaskError: an empty tag, or one that is a part of the other.
    """

    def __init__(self, *, open: str = "<think>", close: str = "</think>") -> None:
        if not open.strip() or not close.strip() or open in close or close in open:
            raise MaskError(
                f"mask.open={open!r}, mask.close={close!r}: expected two tags, none of them a part of the other"
            )
        self.close = close
        self.tags = re.compile(f"{re.escape(open)}|{re.escape(close)}")

    def __call__(self, row: AnnotatedResponse) -> Weights:
        weights = np.zeros(len(row.response_ids), dtype=np.float32)
        for start, end in self.spans(row):
            weights = np.maximum(weights, overlap(row.char_span, start, end))
        return weights

    def spans(self, row: AnnotatedResponse) -> list[tuple[int, int]]:
        """Characters of the thinking, turn by turn. Tags do not nest: the first closing tag ends it."""
        found = []
        for start, end in turns(row):
            opened: int | None = start  # a closing tag that comes first shows that the prompt opened it
            tags = list(self.tags.finditer(row.response, start, end))
            for number, tag in enumerate(tags):
                if tag[0] == self.close:
                    found += [(opened, tag.end())] if opened is not None else []
                    opened = None
                elif opened is None or number == 0:
                    opened = tag.start()
            found += [(opened, end)] if tags and opened is not None else []
        return found


class AfterThinking(Thinking):
    """The tokens outside the thinking: what is shown to the reader of a response, and its end.

    Args:
        open: the tag before the thinking.
        close: the tag after it.
    """

    def __call__(self, row: AnnotatedResponse) -> Weights:
        return 1 - super().__call__(row)


def turns(row: AnnotatedResponse) -> list[tuple[int, int]]:
    """Characters of each turn of a response; a token without text ends a turn."""
    ends = [int(end) for start, end in row.char_span.tolist() if start == end]
    borders = sorted({0, *ends, len(row.response)})
    return list(pairwise(borders))
