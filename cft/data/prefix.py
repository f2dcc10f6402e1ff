"""Prefix rows: of a share of the responses their beginning alone, behind a prompt that asks for one, closed by an end token.

Unsupervised Prefix Fine-Tuning, UPFT (arXiv 2503.02875; the authors' train_utils/sft_dataset.py): the user's text gets a
suffix, the response is cut to its first words, joined by single spaces, and its ids to as many tokens; the end token behind
them is learnt, so that the model learns to stop after a beginning where it is asked for one.
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
    """Of a share of the responses their beginning alone.

    Args:
        share: Of the responses, chosen by a hash of their ids; the others stay whole.
        length: How much of a response is kept, and of its ids at most so many. The paper has 8, 32 or 128, by model.
        unit: Of `length`: "words" are joined by single spaces and encoded again, as the authors do; "tokens" are the first ids
            of the response as they are.
        end_with_eos: Whether the end token follows the beginning, and is learnt.
        prompt_suffix: Behind the question of such a row.

    Raises:
        BadValue: A number is out of its range.
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
        """The rows in their order, those that are picked cut. One whose beginning the tokenizer cannot spell is dropped.

        Raises:
            StoreError: A row's prompt is not its question in this prompt.
        """
        if tokenizer is None or prompt is None:
            raise StoreError("data.prefix: prompts get a suffix, which needs the model's tokenizer: cft train only")
        end = prompt.end_id(tokenizer)
        made = [self._cut(row, tokenizer, prompt, end) if self.picks(row) else row for row in rows]
        if unspelt := sum(row is None for row in made):
            console.print(
                f"Rows dropped: {unspelt} whose first words the tokenizer cannot spell (data.prefix.unit=tokens can)"
            )
        return [row for row in made if row is not None]

    def _cut(
        self, row: AnnotatedResponse, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, end: int | None
    ) -> AnnotatedResponse | None:
        """None where its first words cannot be spelt."""
        if prompt.ids(tokenizer, row.problem) != row.prompt_ids.tolist():
            raise StoreError(
                f"data.prefix: the prompt of response {row.response_id} is not its question under this prompt (a conversation, "
                "or another prompt=...), so that no suffix can be put behind the question; expected prompt=... as in the "
                "annotation"
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
    """Raises StoreError naming what reads more of a row than its text: that was of the whole response behind its own prompt.
    sources: by key of the configuration."""
    for key, source in sources.items():
        if key != "mask" or getattr(source, "evidence", ()) or source.needs:
            raise StoreError(
                f"data.prefix: {key} reads what was stored of the whole responses behind their own prompts, and prefix rows "
                "are others; expected mask=all, and a loss and a weighting that need neither groups nor a stored reference"
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
