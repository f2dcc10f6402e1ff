"""Masks derived from another one, as its controls: as many random tokens, and the tokens that it does not select."""

from __future__ import annotations

import numpy as np

from cft.masks.base import Mask, MaskOf, Weights, hash_of
from cft.types import AnnotatedResponse


class RandomLike(MaskOf):
    """As many tokens of each row as `like` selects, drawn at random from those with evidence: the control for the number of
    tokens.

    Args:
        like: the mask whose number of tokens is matched, row by row.
        seed: the draw is a function of (seed, response id), the same on any rank and in any order.
    """

    def __init__(self, *, like: Mask, seed: int) -> None:
        super().__init__(like)
        self.seed = seed

    def __call__(self, row: AnnotatedResponse) -> Weights:
        length, count = len(row.response_ids), int((self.inner(row) > 0).sum())
        seed = hash_of("random_like", str(self.seed), row.response_id)
        known = np.flatnonzero(self.inner.known(row))
        chosen = np.random.default_rng(seed).choice(known, size=count, replace=False)
        weights = np.zeros(length, dtype=np.float32)
        weights[chosen] = 1.0
        return weights


class Complement(MaskOf):
    """The tokens with evidence that another mask does not select.

    Args:
        of: the other mask.
    """

    def __init__(self, *, of: Mask) -> None:
        super().__init__(of)

    def __call__(self, row: AnnotatedResponse) -> Weights:
        return ((self.inner(row) == 0) & self.inner.known(row)).astype(np.float32)
