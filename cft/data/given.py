"""A row that someone brings: its tokens, which of them may carry loss, and with what weight.

Masks see of such a row what they see of an annotated one: a response, made of the tokens that may carry loss and nothing
else, so that what they pick, count and leave out is always of these. There is no evidence in it.
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
    """One row of data.

    row_id, problem_id: its own, and that of what it answers, by which rows are held out. place: for people.
    questions: texts of those who asked; problem: the last of them. answer: the gold answer, "" where there is none.
    ids: [L] int32. allowed: [L] bool, tokens that may carry loss. weight: [L] float32, a factor of the mask's.
    text, span: [L, 2] characters of each token in it, end exclusive, empty for control tokens.
    finish: "stop" = the last allowed token is an end, else "length". group, chosen: as in TokenRow.
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
        """Tokens before the first that may carry loss."""
        return int(np.argmax(self.allowed))

    def cut(self, length: int) -> GivenRow:
        """Its first tokens."""
        return replace(
            self,
            ids=self.ids[:length],
            allowed=self.allowed[:length],
            weight=self.weight[:length],
            span=self.span[:length],
            finish="length",
        )

    def response(self, scores: Mapping[str, NDArray[np.float32]] | None = None) -> AnnotatedResponse:
        """What masks see: the allowed tokens as one response, without evidence. scores: of the tokens of
        `scored_row`."""
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
    """The row with the mask's weights times its own. Of no token it is known whether it is critical."""
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
    """What stored scores are of: every token of a row from the first that may carry loss on."""
    allowed = row.token_group >= 0
    first = int(np.argmax(allowed))
    ids, there = row.ids.astype(np.int32), np.arange(len(row.ids)) >= first
    none = np.zeros((len(ids), 2), dtype=np.int32)
    weight = np.ones(len(ids), dtype=np.float32)
    return GivenRow(row.row_id, row.row_id, "", (), "", ids, there, weight, "", none, "length").response()


def given_hash(rows: Sequence[GivenRow]) -> str:
    """Hash of what training sees of the rows, in their order."""
    return arrays_hash(part for row in rows for part in (row.ids, row.allowed, row.weight))


def _joined(text: str, span: NDArray[np.int32], allowed: NDArray[np.bool_]) -> tuple[str, NDArray[np.int32]]:
    """(text of the allowed tokens, their characters in it)"""
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
