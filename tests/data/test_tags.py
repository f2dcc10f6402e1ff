"""SFTKey's tagger: tags between a response's own ids, where the verifier's answer begins."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.data.tags import answer_starts, tagged_rows
from cft.errors import BadValue
from cft.masks.spans import AnswerSpan
from cft.masks.thinking import AfterThinking
from cft.models.added_tokens import add_tokens
from cft.models.load import ModelSpec, load_tokenizer, tokenizer_hash
from cft.types import AnnotatedResponse, Verdict
from cft.verifiers import Math, Numeric
from tests.stage import composed

TAGS = ["<Thinking>", "</Thinking>", "<Answer>", "</Answer>"]
TINY = ModelSpec(name="tiny_arith", path="package:tiny_arith")
NUMERIC = Numeric(fallback_last_number=True)


def verify_all(items: Sequence[tuple[str, str]]) -> list[Verdict]:
    return [NUMERIC(*item) for item in items]


@cache
def shipped() -> list[AnnotatedResponse]:
    return AnnotationStore(SHIPPED / "tiny_arith").rows()[:20]


@cache
def tagged() -> tuple[Any, list[AnnotatedResponse]]:
    tokenizer = load_tokenizer(TINY)
    add_tokens(tokenizer, TAGS)
    return tokenizer, tagged_rows(shipped(), texts=TAGS, tokenizer=tokenizer, verify_all=verify_all)


def test_a_response_is_thinking_and_answer_and_its_own_ids_stay() -> None:
    tokenizer, rows = tagged()
    new = set(tokenizer.convert_tokens_to_ids(TAGS))
    for before, after in zip(shipped(), rows, strict=True):
        thinking, answer = before.response.split("\n####")
        assert after.response == f"<Thinking>{thinking}</Thinking><Answer>\n####{answer}</Answer>"
        assert after.response_ids[-1] == tokenizer.eos_token_id  # the end stays the end
        kept = ~np.isin(after.response_ids, list(new))
        assert after.response_ids[kept].tolist() == before.response_ids.tolist()
        assert (after.alt_outcome[kept] == before.alt_outcome).all()
        assert (after.alt_outcome[~kept] == -1).all()
        assert [after.alt_answer[t] for t in np.flatnonzero(kept)] == before.alt_answer
        assert after.logprob[kept].tolist() == before.logprob.tolist()
        for token, (start, end) in zip(after.response_ids[:-1], after.char_span[:-1], strict=True):
            assert after.response[start:end] == tokenizer.decode([token])
        assert after.response_id != before.response_id
    assert len({row.response_id for row in rows}) == len(rows)


def test_the_second_stage_learns_what_follows_the_thinking() -> None:
    tokenizer, rows = tagged()
    pattern = composed("train", "experiment=sftkey").mask["pattern"]
    for row in rows:
        expected = row.response_ids.tolist()[
            row.response_ids.tolist().index(tokenizer.convert_tokens_to_ids(TAGS[1])) + 1 :
        ]
        for mask in (
            AfterThinking(open=TAGS[0], close=TAGS[1]),
            AnswerSpan(pattern=pattern, with_end=True),
        ):
            assert row.response_ids[mask(row) > 0].tolist() == expected


@pytest.mark.parametrize(
    ("verifier", "text", "gold", "answer"),
    [
        (NUMERIC, "Two and two. That is 4.\n#### 4", "4", "#### 4"),
        (NUMERIC, "We add 3.5 and 0.5. The answer is 4.", "4", "The answer is 4."),
        (
            Math(fallback_last_number=True, lists="set"),
            "So $x = 2$.\n\nTherefore $\\boxed{2}$ is it.",
            "2",
            "Therefore $\\boxed{2}$ is it.",
        ),
        (NUMERIC, "4", "4", "4"),
        # The number alone would be read, but not as what was asked for: a marker stays with its number.
        (NUMERIC, "It is 7. #### 7", "7", "#### 7"),
    ],
)
def test_the_answer_is_the_shortest_end_that_reads_the_same(verifier: Any, text: str, gold: str, answer: str) -> None:
    (start,) = answer_starts([(text, gold)], verify_all=lambda items: [verifier(*item) for item in items])
    assert text[start:] == answer


def test_tags_that_a_tokenizer_cannot_spell_are_refused_with_the_remedy() -> None:
    with pytest.raises(BadValue, match=r"writes '<Thinking>' as .*model\.added_tokens=\[<Thinking>,"):
        tagged_rows(shipped()[:1], texts=TAGS, tokenizer=load_tokenizer(TINY), verify_all=verify_all)
    with pytest.raises(BadValue, match=r"data\.tags: expected four different texts"):
        tagged_rows(shipped()[:1], texts=TAGS[:3], tokenizer=tagged()[0], verify_all=verify_all)


def test_a_tokenizer_without_its_tags_is_the_annotations() -> None:
    own = load_tokenizer(TINY)
    assert tokenizer_hash(tagged()[0], without=TAGS) == tokenizer_hash(own)
    assert tokenizer_hash(tagged()[0], without=TAGS[:3]) != tokenizer_hash(own)
