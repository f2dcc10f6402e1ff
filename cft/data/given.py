"""User-provided rows: tokens, which of them may carry loss, and with what weight.

For masks, such a row is presented as an annotated response that consists of the tokens that may carry loss, so that masks
select and count only among these. It has no evidence about alternatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cft.annotation.rows import without_evidence
from cft.data.batches import UNKNOWN_GROUP, TokenRow, arrays_hash
from cft.masks.base import Mask, mask_weights
from cft.scores.column import Column
from cft.types import AnnotatedResponse


@dataclass(frozen=True, slots=True)
class GivenRow:
    """One user-provided row.

    Args:
        row_id: id of the row.
        problem_id: id of the question; rows are held out by it.
        place: location of the row, for messages.
        questions: texts of the user's turns; the last one is the problem.
        answer: the gold answer, "" if there is none.
        ids: [L] int32 token ids.
        allowed: [L] bool, tokens that may carry loss.
        weight: [L] float32, multiplied with the mask's weights.
        text: text of the row.
        span: [L, 2] character range of each token in `text`, end exclusive; empty for control tokens.
        finish: "stop" if the last allowed token is an end token, else "length".
        group: as in TokenRow.
        chosen: as in TokenRow.
    """

    row_id: str
    problem_id: str
    place: str
    questions: tuple[str, ...]
    answer: str
    ids: NDArray[np.int32]
    allowed: NDArray[np.bool_]
    weight: NDArray[np.float32]
    text: str
    span: NDArray[np.int32]
    finish: str
    group: str = ""
    chosen: bool = True

    @property
    def prompt_len(self) -> int:
        """Number of tokens before the first one that may carry loss."""
        return int(np.argmax(self.allowed))

    def cut(self, length: int) -> GivenRow:
        """The row truncated to its first `length` tokens."""
        return replace(
            self,
            ids=self.ids[:length],
            allowed=self.allowed[:length],
            weight=self.weight[:length],
            span=self.span[:length],
            finish="length",
        )

    def response(self, scores: Mapping[str, NDArray[np.float32]] | None = None) -> AnnotatedResponse:
        """The allowed tokens as one response without evidence, for masks. scores: of the tokens of `scored_row`."""
        response_ids = self.ids[self.allowed]
        text, span = _joined(self.text, self.span, self.allowed)
        picked = self.allowed[self.prompt_len :]
        size = len(response_ids)
        unknown = np.full(size, np.nan, dtype=np.float32)
        return AnnotatedResponse(
            problem_id=self.problem_id,
            response_id=self.row_id,
            problem=self.questions[-1] if self.questions else "",
            answer=self.answer,
            response=text,
            finish=self.finish,
            prompt_ids=self.ids[: self.prompt_len],
            response_ids=response_ids,
            char_span=span,
            logprob=unknown,
            entropy=unknown,
            **without_evidence(size),
            scores={name: values[picked] for name, values in (scores or {}).items()},
        )


def given_token_row(
    row: GivenRow, response: AnnotatedResponse, *, mask: Mask, columns: Mapping[str, Column]
) -> TokenRow:
    """The row for training, with the mask's weights times its own. Whether tokens are critical is not known."""
    at = np.flatnonzero(row.allowed)
    weight = np.zeros(len(row.ids), dtype=np.float32)
    weight[at] = mask_weights(mask, response) * row.weight[at]
    group = np.full(len(row.ids), -1, dtype=np.int8)
    group[at] = UNKNOWN_GROUP
    scores = {name: np.zeros(len(row.ids), dtype=np.float32) for name in columns}
    for name, column in columns.items():
        scores[name][at] = column(response)
    ids = row.ids.astype(np.int64)
    return TokenRow(row.row_id, ids, weight, group, scores, group=row.group, chosen=row.chosen)


def scored_row(row: TokenRow) -> AnnotatedResponse:
    """The part of a row that stored scores cover: all tokens from the first one that may carry loss."""
    allowed = row.token_group >= 0
    first = int(np.argmax(allowed))
    ids, there = row.ids.astype(np.int32), np.arange(len(row.ids)) >= first
    none = np.zeros((len(ids), 2), dtype=np.int32)
    weight = np.ones(len(ids), dtype=np.float32)
    return GivenRow(row.row_id, row.row_id, "", (), "", ids, there, weight, "", none, "length").response()


def given_hash(rows: Sequence[GivenRow]) -> str:
    """Hash of the rows' training data, in order."""
    return arrays_hash(part for row in rows for part in (row.ids, row.allowed, row.weight))


def _joined(text: str, span: NDArray[np.int32], allowed: NDArray[np.bool_]) -> tuple[str, NDArray[np.int32]]:
    """(text of the allowed tokens, character range of each in it)"""
    parts: list[str] = []
    made = np.zeros((int(allowed.sum()), 2), dtype=np.int32)
    size, done, last, shift = 0, 0, -2, 0
    for number, t in enumerate(np.flatnonzero(allowed).tolist()):
        start, end = span[t].tolist()
        if start == end:
            made[number] = size, size
            continue
        if last != t - 1:
            shift, done = size - start, start
        last = t
        if end > done:
            parts.append(text[done:end])
            size, done = size + end - done, end
        made[number] = start + shift, end + shift
    return "".join(parts), made
