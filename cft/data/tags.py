"""Marks thinking and answer in responses with tags: SFTKey's tagger (arXiv 2512.21017; a reconstruction, since no code is
published).

    First, 2 + 3 = 5.\\n#### 5<eos>   ->   <Thinking>First, 2 + 3 = 5.</Thinking><Answer>\\n#### 5</Answer><eos>

The answer starts at the last line or sentence from which the verifier still reads the same final answer with the same verdict.
Tags are inserted between the response's ids, so that its tokens do not change; if the answer starts inside a token, the tag is
inserted before that token. A tag is a single token if `model.added_tokens` lists it, otherwise plain text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cft.errors import BadValue
from cft.files import sha256_json
from cft.models.text import char_spans, decode
from cft.prompts.chat import encoded
from cft.types import AnnotatedResponse, Outcome, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VerifyAll = Callable[[Sequence[tuple[str, str]]], list[Verdict]]

MAX_STARTS = 16  # candidates from the end of a response; if none fits, the answer is the whole response
_STARTS = re.compile(r"\n+|(?<=[.!?])[^\S\n]+")
# Values of inserted tokens, which were not annotated, by column.
_UNKNOWN: dict[str, Any] = {
    "logprob": np.nan,
    "entropy": np.nan,
    "alt_ids": 0,
    "alt_logprob": np.nan,
    "alt_tokens": 0,
    "alt_outcome": Outcome.UNTRIED,
    "replay_outcome": Outcome.UNTRIED,
    "prefix_outcome": Outcome.UNTRIED,
    "sampled": 0,
    "sampled_right": 0,
    "sampled_cut_off": 0,
    "sampled_undecided": 0,
}


class Tags(NamedTuple):
    """Ids of each tag."""

    open_thinking: list[int]
    close_thinking: list[int]
    open_answer: list[int]
    close_answer: list[int]

    @classmethod
    def of(cls, texts: Sequence[str], *, tokenizer: PreTrainedTokenizerBase) -> Tags:
        """The ids of the four texts. Raises BadValue if there are not four, or the tokenizer cannot spell one."""
        if len(set(texts)) != 4 or not all(text.strip() for text in texts):
            raise BadValue(
                "data.tags: expected four different texts, such as [<Thinking>,</Thinking>,<Answer>,</Answer>], or null, found "
                f"{list(texts)}"
            )
        ids = [encoded(tokenizer, text) for text in texts]
        for text, found in zip(texts, ids, strict=True):
            if decode(tokenizer, found) != text:
                add = f"model.added_tokens=[{','.join(texts)}]"
                raise BadValue(
                    f"data.tags: the tokenizer of {tokenizer.name_or_path} writes {text!r} as "
                    f"{decode(tokenizer, found)!r}; make each tag a single token with {add}, or choose other tags"
                )
        return cls(*ids)


def tagged_rows(
    rows: Sequence[AnnotatedResponse],
    *,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    verify_all: VerifyAll,
) -> list[AnnotatedResponse]:
    """The rows with tags and new ids, in the same order. Raises BadValue (`Tags.of`)."""
    tags = Tags.of(texts, tokenizer=tokenizer)
    starts = answer_starts([(row.response, row.answer) for row in rows], verify_all=verify_all)
    return [_tagged(row, start, tags, tokenizer) for row, start in zip(rows, starts, strict=True)]


def answer_starts(items: Sequence[tuple[str, str]], *, verify_all: VerifyAll) -> list[int]:
    """Index of the character at which the answer starts in each (response, gold answer); 0 if it is the whole response."""
    places = [[0, *(found.end() for found in _STARTS.finditer(text))][-MAX_STARTS:] for text, _ in items]
    asked = [
        (text[at:], answer)
        for (text, answer), starts in zip(items, places, strict=True)
        for at in (0, *starts)
        if text[at:].strip() or at == 0
    ]
    distinct = list(dict.fromkeys(asked))
    verdicts = dict(zip(distinct, map(_read, verify_all(distinct)), strict=True))
    return [
        max(
            (at for at in starts if verdicts.get((text[at:], answer)) == verdicts[text, answer]),
            default=0,
        )
        for (text, answer), starts in zip(items, places, strict=True)
    ]


def _read(verdict: Verdict) -> tuple[str, str, bool]:
    return verdict.decision, verdict.extracted, verdict.explicit


def _tagged(row: AnnotatedResponse, start: int, tags: Tags, tokenizer: PreTrainedTokenizerBase) -> AnnotatedResponse:
    size = len(row.response_ids)
    end = size - (row.finish == "stop")
    later = np.flatnonzero(row.char_span[:end, 1] > start)
    split = int(later[0]) if start and len(later) else 0
    pieces = [(0, tags.open_thinking), (split, tags.close_thinking + tags.open_answer), (end, tags.close_answer)]
    at = [place for place, ids in pieces for _ in ids]
    response_ids = np.insert(row.response_ids, at, [token for _, ids in pieces for token in ids])
    known: dict[str, Any] = {name: getattr(row, name) for name in _UNKNOWN}
    columns = {
        name: np.insert(values, at, _UNKNOWN[name], axis=0) if len(values) else values for name, values in known.items()
    }
    width = row.alt_ids.shape[1]
    answers = list(row.alt_answer)
    for place in sorted(at, reverse=True):
        answers.insert(place, [""] * width)
    text, span = char_spans(tokenizer, response_ids)
    return replace(
        row,
        response_id=sha256_json([row.response_id, response_ids.tolist()])[:16],
        response=text,
        response_ids=response_ids,
        char_span=span,
        alt_answer=answers,
        **columns,
    )
