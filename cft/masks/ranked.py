"""Masks that compare tokens with each other: within a row, or with the whole data set (through `fit`).

HighEntropy     top fraction of a row by the stored entropy                    (arXiv 2506.01939; there by batch)
TopScore        top fraction of a row by any stored score, such as attention
TfIdf           top fraction of a row by TF-IDF                                (SFT-GO, arXiv 2506.15021)
Excess          top fraction of a row by base loss - reference loss           (Rho-1, arXiv 2404.07965; there by batch)
TokenCleaning   top fraction of the data set by base loss - reference loss     (arXiv 2502.01968)
Reasoning       tokens whose loss does not fall when a model is trained on shuffled pairs   (SHAD, arXiv 2412.14780)

A fraction of a row is ceil(fraction * tokens), with ties broken by position; a fraction of the data set is a threshold, so the
mask of a row never depends on the order of the rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cft.masks.base import MaskError, RowMask, Weights
from cft.ranges import Finite, FractionAboveZero, in_range
from cft.scores.column import StoredColumn
from cft.types import AnnotatedResponse


def top_of_row(values_R: NDArray[np.floating], *, fraction: float) -> Weights:
    """[R] 1 for the ceil(fraction * R) largest values, else 0; equal values: the earlier token."""
    weights = np.zeros(len(values_R), dtype=np.float32)
    # A product such as 0.6 * 5 may be slightly above the exact integer.
    count = math.ceil(fraction * len(values_R) - 1e-9)
    weights[np.argsort(-values_R, kind="stable")[:count]] = 1.0
    return weights


class HighEntropy(RowMask):
    """The most uncertain tokens of a response, by the annotating model's entropy (arXiv 2506.01939).

    The paper ranks within a batch of roll-outs and by the live model; weighting=high_entropy is the live form.

    Args:
        fraction: fraction of the response's tokens to select, above 0 and at most 1. The paper's is 0.2.
    """

    evidence = ("entropy",)

    @in_range
    def __init__(self, *, fraction: FractionAboveZero) -> None:
        self.fraction = fraction

    def __call__(self, row: AnnotatedResponse) -> Weights:
        if np.isnan(row.entropy).any():
            raise MaskError(
                f"response {row.response_id}: the annotation has no entropy here, since its engine saw only the most probable "
                "tokens; compute it with cft score score=entropy annotation=..., then choose the same tokens with "
                f"mask=attention mask.score=entropy mask.fraction={self.fraction:g}"
            )
        return top_of_row(row.entropy, fraction=self.fraction)


class TopScore(RowMask):
    """The tokens of a response with the largest values of a stored score.

    Args:
        score: name of the stored score (`cft score`).
        fraction: fraction of the response's tokens that is picked, above 0 and at most 1.
    """

    score_arguments = ("score",)

    @in_range
    def __init__(self, *, score: str, fraction: FractionAboveZero) -> None:
        self.column = StoredColumn(score)
        self.needs = self.column.needs
        self.fraction = fraction

    def __call__(self, row: AnnotatedResponse) -> Weights:
        return top_of_row(self.column(row), fraction=self.fraction)


class TfIdf(RowMask):
    """The tokens of a response that are frequent in it and rare elsewhere (SFT-GO, arXiv 2506.15021).

    tf-idf = (count in the response / its length) * (log((1 + N) / (1 + df)) + 1), over token ids; N responses to train on,
    df of them hold the token. The paper's exact smoothing is unknown; this one leaves a token that occurs everywhere a
    weight by its frequency.

    Args:
        fraction: fraction of the response's tokens that is picked, above 0 and at most 1.
    """

    @in_range
    def __init__(self, *, fraction: FractionAboveZero) -> None:
        self.fraction = fraction
        self.documents = 0
        self.document_frequency: Counter[int] = Counter()

    def fit(self, rows: Sequence[AnnotatedResponse]) -> None:
        self.documents = len(rows)
        self.document_frequency = Counter(token for row in rows for token in set(row.response_ids.tolist()))

    def __call__(self, row: AnnotatedResponse) -> Weights:
        ids = row.response_ids.tolist()
        count = Counter(ids)
        idf = {token: math.log((1 + self.documents) / (1 + self.document_frequency[token])) + 1 for token in count}
        values = np.array([count[token] / len(ids) * idf[token] for token in ids], dtype=np.float64)
        return top_of_row(values, fraction=self.fraction)


class _Gain:
    """[R] nats by which the loss of each token falls from one stored model to another."""

    def __init__(self, base: str, reference: str) -> None:
        if base == reference:
            raise MaskError(f"mask.base and mask.reference: both are {base}, expected log-probs of two models")
        self.base, self.reference = StoredColumn(base), StoredColumn(reference)
        self.needs = tuple(sorted({*self.base.needs, *self.reference.needs}))

    def __call__(self, row: AnnotatedResponse) -> NDArray[np.float32]:
        return self.reference(row) - self.base(row)


class _ByGain(RowMask):
    """Base of the masks by the gain of a reference model over a base model. Arguments: as of the masks."""

    logprob_arguments = ("base", "reference")

    @in_range
    def __init__(self, *, base: str, reference: str, fraction: FractionAboveZero) -> None:
        self.gain = _Gain(base, reference)
        self.needs = self.gain.needs
        self.fraction = fraction


class Excess(_ByGain):
    """The tokens of a response with the largest base loss - reference loss (Rho-1, arXiv 2404.07965), both models frozen.

    By the live model it is weighting=excess_loss. SFT-GO (arXiv 2506.15021) makes groups of it.

    Args:
        base: stored score of kind reference_logprob, of the base model; "logprob" is the annotating model's own.
        reference: the same, of the reference model.
        fraction: fraction of the response's tokens that is picked, above 0 and at most 1.

    Raises:
        MaskError: `base` and `reference` are the same score.
    """

    def __call__(self, row: AnnotatedResponse) -> Weights:
        return top_of_row(self.gain(row), fraction=self.fraction)


class TokenCleaning(_ByGain):
    """The tokens with the largest base loss - reference loss in the whole data set (Token Cleaning, arXiv 2502.01968).

    This is the paper's fixed-model form: both models are frozen. The threshold is the value of the last token within the
    fraction, and all tokens with that value are picked.

    Args:
        base: stored score of kind reference_logprob, of the base model; "logprob" is the annotating model's own.
        reference: the same, of the reference model.
        fraction: fraction of the data set's response tokens that is picked, above 0 and at most 1.

    Raises:
        MaskError: `base` and `reference` are the same score.
    """

    threshold = math.nan  # set by `fit`

    def fit(self, rows: Sequence[AnnotatedResponse]) -> None:
        gains = [self.gain(row) for row in rows]
        flat = np.sort(np.concatenate(gains))[::-1] if gains else np.zeros(0, np.float32)
        count = math.ceil(self.fraction * len(flat) - 1e-9)
        self.threshold = float(flat[count - 1]) if count else math.inf

    def facts(self) -> dict[str, Any]:
        return {"threshold_nats": self.threshold}

    def __call__(self, row: AnnotatedResponse) -> Weights:
        if math.isnan(self.threshold):
            raise MaskError("TokenCleaning ranks tokens over the whole data set: call fit(rows) first")
        return (self.gain(row) >= self.threshold).astype(np.float32)


class Reasoning(RowMask):
    """The tokens that are not boilerplate (SHAD, arXiv 2412.14780).

    A token is boilerplate if its loss falls from `base` to `shuffled`, a model trained briefly on prompts paired with other
    prompts' responses, which teach nothing but form.

    Args:
        base: stored score of kind reference_logprob, of the model before; "logprob" is the annotating model's own.
        shuffled: the same, of the model trained on shuffled pairs.
        margin_nats: a loss that falls by no more than this, in nats, does not make a token boilerplate.

    Raises:
        MaskError: `base` and `shuffled` are the same score.
    """

    logprob_arguments = ("base", "shuffled")

    @in_range
    def __init__(self, *, base: str, shuffled: str, margin_nats: Finite = 0.0) -> None:
        if base == shuffled:
            raise MaskError(f"mask.base and mask.shuffled: both are {base}, expected log-probs of two models")
        self.base, self.shuffled = StoredColumn(base), StoredColumn(shuffled)
        self.needs = tuple(sorted({*self.base.needs, *self.shuffled.needs}))
        self.margin_nats = margin_nats

    def __call__(self, row: AnnotatedResponse) -> Weights:
        return (self.shuffled(row) - self.base(row) <= self.margin_nats).astype(np.float32)
