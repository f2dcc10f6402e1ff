"""Prefix rows: a fraction of the responses is truncated to a prefix, with a prompt that asks for it and an end token.

Unsupervised Prefix Fine-Tuning, UPFT (arXiv 2503.02875; the authors' train_utils/sft_dataset.py): the user's text gets a
suffix. The response is truncated to its first words, joined by single spaces, and then to the same number of tokens. The end
token after them carries loss, so that the model learns to stop after a prefix if the prompt asks for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cft.annotation.rows import without_evidence
from cft.annotation.store import StoreError
from cft.console import console
from cft.errors import BadValue
from cft.masks.base import hash_of
from cft.models.text import char_spans
from cft.prompts.chat import Prompt, TextError, response_ids
from cft.ranges import AtLeastOne, Fraction, require_in_range
from cft.types import AnnotatedResponse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixRows:
    """Settings of prefix rows.

    Args:
        share: Fraction of the responses to truncate, 0 to 1, selected by a hash of their ids; the others remain complete.
        length: Number of units to keep, and maximal number of tokens. The paper uses 8, 32 or 128, depending on the model.
        unit: Unit of `length`: "words" are joined by single spaces and encoded again, as the authors do; "tokens" are the first
            ids of the response.
        end_with_eos: Whether to append the end token, with loss.
        prompt_suffix: Text appended to the question of a truncated row.

    Raises:
        BadValue: A number is out of range.
    """

    share: Fraction
    length: AtLeastOne
    unit: Literal["words", "tokens"]
    end_with_eos: bool
    prompt_suffix: str

    def __post_init__(self) -> None:
        require_in_range(self)

    def picks(self, row: AnnotatedResponse) -> bool:
        return hash_of("prefix", row.response_id) / 2**64 < self.share

    def of(
        self, rows: Sequence[AnnotatedResponse], *, tokenizer: PreTrainedTokenizerBase | None, prompt: Prompt | None
    ) -> list[AnnotatedResponse]:
        """The rows in order, with the selected ones truncated. Rows whose prefix the tokenizer cannot spell are dropped.

        Raises:
            StoreError: The prompt of a row is not its question in the configured prompt.
        """
        if tokenizer is None or prompt is None:
            raise StoreError(
                "data.prefix: the prompt suffix needs the model's tokenizer, so it is supported by cft train only"
            )
        end = prompt.end_id(tokenizer)
        made = [self._cut(row, tokenizer, prompt, end) if self.picks(row) else row for row in rows]
        if unspelt := sum(row is None for row in made):
            console.print(
                f"Rows dropped: {unspelt} whose first words the tokenizer cannot spell (data.prefix.unit=tokens keeps them)"
            )
        return [row for row in made if row is not None]

    def _cut(
        self, row: AnnotatedResponse, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, end: int | None
    ) -> AnnotatedResponse | None:
        """The truncated row; None if the tokenizer cannot spell its first words."""
        if prompt.ids(tokenizer, row.problem) != row.prompt_ids.tolist():
            raise StoreError(
                f"data.prefix: the prompt of response {row.response_id} is not its question under this prompt (a conversation, "
                "or another prompt=...), so no suffix can be appended to the question; expected prompt=... as in the annotation"
            )
        stopped = row.finish == "stop"
        if self.end_with_eos and end is None and not stopped:
            raise BadValue("data.prefix.end_with_eos: neither template nor tokenizer has an end token; expected false")
        ids = [int(token) for token in row.response_ids[: len(row.response_ids) - stopped]]
        if self.unit == "words":
            words = " ".join(row.response.split()[: self.length])
            try:
                ids = response_ids(tokenizer, words, ends=[] if end is None else [end])
            except TextError:
                return None
        ids = ids[: self.length]
        if self.end_with_eos:
            ids.append(int(row.response_ids[-1]) if end is None else end)
        return _cut_to(
            row,
            prompt_ids=np.asarray(prompt.ids(tokenizer, row.problem + self.prompt_suffix), dtype=np.int32),
            ids=np.asarray(ids, dtype=np.int32),
            tokenizer=tokenizer,
            ends=self.end_with_eos,
        )


def require_nothing_stored(sources: Mapping[str, Any]) -> None:
    """Raises StoreError naming a part that needs stored values, which belong to the complete response after its own prompt.

    sources: parts by config key.
    """
    for key, source in sources.items():
        if key != "mask" or getattr(source, "evidence", ()) or source.needs:
            raise StoreError(
                f"data.prefix: {key} reads values stored for the complete responses after their own prompts, which do not "
                "apply to prefix rows; expected mask=all, and a loss and a weighting that need neither groups nor a stored "
                "reference"
            )


def _cut_to(
    row: AnnotatedResponse, *, prompt_ids: Any, ids: Any, tokenizer: PreTrainedTokenizerBase, ends: bool
) -> AnnotatedResponse:
    text, spans = char_spans(tokenizer, ids)
    unknown = np.full(len(ids), np.nan, dtype=np.float32)
    return replace(
        row,
        response=text,
        finish="stop" if ends else "length",
        prompt_ids=prompt_ids,
        response_ids=ids,
        char_span=spans,
        logprob=unknown,
        entropy=unknown,
        scores={},
        **without_evidence(len(ids)),
    )
