"""Markup is left out before a response is graded."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cft.benchmarks.sets import verifier_for
from cft.data.splits import splits_of
from cft.errors import BadValue
from cft.types import Decision, Problem, ThinkingTags
from cft.verifiers import FirstAnswer, Numeric, Stripped
from cft.verifiers.stripped import innermost

NUMERIC = Numeric(fallback_last_number=True)
FIRST = FirstAnswer(inner=NUMERIC)
TAGS = ("<Answer>", "</Answer>")


def test_a_tagged_answer_is_read() -> None:
    assert NUMERIC("<Answer>\n#### 9</Answer>", "9").decision != Decision.RIGHT  # what it is for
    assert Stripped(inner=NUMERIC, texts=TAGS)("<Answer>\n#### 9</Answer>", "9").decision == Decision.RIGHT
    assert Stripped(inner=NUMERIC, texts=("a", "ab"))("#### abab9", "9").decision == Decision.RIGHT  # longer ones first
    with pytest.raises(BadValue, match=r"verify\.strip"):
        Stripped(inner=NUMERIC, texts=("",))


def test_it_is_inside_of_what_leaves_thinking_out() -> None:
    splits = splits_of(name="x", seed=0, train=[], validation=[], test=[Problem("1", "q", "9")], dropped=Counter())
    tags = ThinkingTags("<Thinking>", "</Thinking>")
    verifier = verifier_for(splits, chosen=NUMERIC, thinking=tags, strip=TAGS)
    assert innermost(verifier) == NUMERIC
    text = "<Thinking>it is 4\n#### 4</Thinking><Answer>\n#### 9</Answer>"
    assert [verifier(text, gold).decision for gold in ("9", "4")] == [Decision.RIGHT, Decision.WRONG]
    assert verifier("<Thinking>it is 4\n#### 4", "4").decision == Decision.WRONG  # never closed


PIECES = st.lists(
    st.sampled_from(["<Answer>", "</Answer>", "</Ans", "\\boxed{5}", "#### 5\n", "5", " ", "}"]), max_size=6
)


@given(before=PIECES, after=PIECES)
def test_what_is_final_stays_so(before: list[str], after: list[str]) -> None:
    verifier = Stripped(inner=FIRST, texts=TAGS)
    text = "".join(before)
    if verifier.final(text):
        assert verifier(text + "".join(after), "5") == verifier(text, "5")
