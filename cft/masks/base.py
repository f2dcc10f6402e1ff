"""Masks: which response tokens carry loss, and with what static weight. Pure functions of stored rows.

    mask(row) -> [R] float32, 0 = not eligible

A mask never touches the model; what depends on live log-probs is a weighting (`cft/weightings/token.py`). To add one, write a
class with a keyword-only constructor and `__call__`, and a yaml in conf/mask/ that names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cft.errors import UserError
from cft.types import AnnotatedResponse

Weights = NDArray[np.float32]


class MaskError(UserError, ValueError):
    """The stored evidence cannot answer what the mask asks; the message names the row and the remedy."""


class TooLittleEvidence(MaskError):
    """The annotation has less evidence than the mask needs; cft annotate can extend it.

    overrides: settings of cft annotate for a new annotation with enough evidence.
    """

    def __init__(self, found: str, *, remedy: str, overrides: str) -> None:
        super().__init__(f"{found}; {remedy}")
        self.found, self.overrides = found, overrides


class Mask(Protocol):
    """needs: names of stored scores that rows must have (`row.scores`). fit: called once with all training rows, for
    statistics over the data set; they must not depend on anything else, nor on the order of the rows. facts: inputs and fitted
    values for the run's results. JSON. known: [R] tokens with evidence; the mask never selects others."""

    needs: tuple[str, ...]

    def fit(self, rows: Sequence[AnnotatedResponse]) -> None: ...

    def facts(self) -> dict[str, Any]: ...

    def known(self, row: AnnotatedResponse) -> NDArray[np.bool_]: ...

    def __call__(self, row: AnnotatedResponse) -> Weights: ...


class RowMask:
    """Base of most masks: functions of the evidence of one row.

    score_arguments: constructor arguments that name stored scores, for the config check. evidence: the parts of an annotation
    that it reads besides the text, which data=rows does not have (`EVIDENCE` in `cft/config/needs.py`).
    """

    needs: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    score_arguments: tuple[str, ...] = ()

    def fit(self, rows: Sequence[AnnotatedResponse]) -> None:
        """Nothing to learn."""

    def facts(self) -> dict[str, Any]:
        return {}

    def known(self, row: AnnotatedResponse) -> NDArray[np.bool_]:
        """[R] tokens with evidence. Others are not eligible, in the complement neither."""
        return np.ones(len(row.response_ids), dtype=np.bool_)


def _evidence_of(mask: Mask) -> tuple[str, ...]:
    return getattr(mask, "evidence", ())


class MaskOf(RowMask):
    """A mask derived from another one, with its needs, evidence and statistics."""

    def __init__(self, inner: Mask) -> None:
        self.inner = inner
        self.needs = inner.needs
        self.evidence = _evidence_of(inner)

    def fit(self, rows: Sequence[AnnotatedResponse]) -> None:
        self.inner.fit(rows)

    def facts(self) -> dict[str, Any]:
        return self.inner.facts()

    def known(self, row: AnnotatedResponse) -> NDArray[np.bool_]:
        return self.inner.known(row)


def mask_weights(mask: Mask, row: AnnotatedResponse) -> Weights:
    """The mask's weights of one row, checked. Raises MaskError naming the row on a wrong length or a bad weight."""
    weights = np.asarray(mask(row), dtype=np.float32)
    if weights.shape != (len(row.response_ids),):
        raise MaskError(
            f"response {row.response_id}: {type(mask).__name__} gave weights of shape {weights.shape}, "
            f"expected ({len(row.response_ids)},), one per response token"
        )
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise MaskError(f"response {row.response_id}: {type(mask).__name__} gave a negative, infinite or NaN weight")
    return weights


def hash_of(*parts: str) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest())
