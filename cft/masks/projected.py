"""A mask from a model with another tokenizer, projected through the characters that tokens cover.

A target token is selected if it overlaps a selected source token; its weight is the largest of theirs. The end token, which
covers no character, is selected if the source's end token is. Nothing is re-encoded: both annotations hold their own ids
and spans of the same text. Projecting to another tokenizer and back never loses a token; it gains the tokens that share a token
of the other tokenizer with a selected one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cft.annotation.store import AnnotationStore, find_annotation
from cft.console import console
from cft.masks.base import Mask, MaskError, RowMask, Weights, mask_weights
from cft.scores.store import with_scores
from cft.types import AnnotatedResponse


def project(
    weight_S: Weights, *, source_span: NDArray[np.int32], target_span: NDArray[np.int32], ends: bool
) -> Weights:
    """[R] weights of the target's tokens. weight_S: of the source's. Spans: [S, 2] and [R, 2] of the same text, end exclusive.

    ends: whether both responses end with an end token; the two are matched.
    """
    if not len(weight_S) or not len(target_span):
        return np.zeros(len(target_span), dtype=np.float32)
    overlaps_RS = (target_span[:, :1] < source_span[:, 1]) & (target_span[:, 1:] > source_span[:, 0])
    weight_R = np.where(overlaps_RS, weight_S, 0.0).max(1).astype(np.float32)
    if ends:
        weight_R[-1] = max(weight_R[-1], weight_S[-1])
    return weight_R


class Projected(RowMask):
    """A mask of another annotation of the same responses, projected by characters (CFT, arXiv 2510.10974, masks of another
    model family).

    Rows are matched by problem id and exact response text. A row without a match has no eligible token, not even in the mask's
    complement; such rows are counted.

    Args:
        from_annotation: name or folder; make one with the other model by cft annotate responses=given.
        annotations_dir: folder of named annotations.
        inner: the mask, which reads the other annotation's evidence and stored scores.

    Raises:
        StoreError: no such annotation.
        MaskError: none of its responses is a training row (in `fit`).
    """

    evidence = ("annotation",)

    def __init__(self, *, from_annotation: str, annotations_dir: str, inner: Mask) -> None:
        self.inner = inner
        self.name, self.annotations_dir = from_annotation, annotations_dir
        folder = find_annotation(from_annotation, annotations_dir=annotations_dir, key="mask.from_annotation")
        store = AnnotationStore(folder)
        self.fingerprint = store.manifest()["fingerprint_sha256"]
        rows, self.scores = with_scores(store, store.rows(), names=inner.needs, annotations_dir=annotations_dir)
        self.partners = {_key(row): row for row in rows}
        self.matched = self.unmatched = 0

    def fit(self, rows: Sequence[AnnotatedResponse]) -> None:
        found = [partner for row in rows if (partner := self.partners.get(_key(row))) is not None]
        self.matched, self.unmatched = len(found), len(rows) - len(found)
        if rows and not found:
            raise MaskError(
                f"mask.from_annotation={self.name}: none of its {len(self.partners)} responses is one of the "
                f"{len(rows)} to train on (same problem id and text). Annotate the same solutions with the other model: "
                f"cft annotate responses=given annotation={self.name} model=<the other model> data=<the same "
                "problems with these responses as solutions>"
            )
        if self.unmatched:
            console.print(f"Rows without a partner in {self.name}: {self.unmatched} of {len(rows)}; they carry no loss")
        self.inner.fit(found)

    def facts(self) -> dict[str, Any]:
        return {
            "from_annotation": self.fingerprint,
            "scores": self.scores,
            "matched_rows": self.matched,
            "unmatched_rows": self.unmatched,
            **self.inner.facts(),
        }

    def known(self, row: AnnotatedResponse) -> NDArray[np.bool_]:
        """Tokens that overlap a selected token of the match, or no token without evidence."""
        partner = self.partners.get(_key(row))
        if partner is None:
            return np.zeros(len(row.response_ids), dtype=np.bool_)
        unknown = self._carried((~self.inner.known(partner)).astype(np.float32), partner, row)
        return (unknown == 0) | (self(row) > 0)

    def __call__(self, row: AnnotatedResponse) -> Weights:
        partner = self.partners.get(_key(row))
        if partner is None:
            return np.zeros(len(row.response_ids), dtype=np.float32)
        return self._carried(mask_weights(self.inner, partner), partner, row)

    def _carried(self, weights: Weights, partner: AnnotatedResponse, row: AnnotatedResponse) -> Weights:
        return project(
            weights,
            source_span=partner.char_span,
            target_span=row.char_span,
            ends=partner.finish == row.finish == "stop",
        )


def _key(row: AnnotatedResponse) -> tuple[str, str]:
    return row.problem_id, row.response
