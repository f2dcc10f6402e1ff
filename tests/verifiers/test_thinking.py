"""Thinking is no answer: what is graded, what is final, and what a prompt says of the beginning of a response."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from cft.errors import BadValue
from cft.types import Completion, Decision, Outcome, ThinkingTags, Verifier
from cft.verifiers import AfterThinking, Exact, FirstAnswer, Numeric, verifier_fingerprint
from cft.verifiers.grader import Grader
from cft.verifiers.thinking import after_thinking, visible

TAGS = ThinkingTags("<think>", "</think>")
NUMERIC = Numeric(fallback_last_number=True)
FIRST = FirstAnswer(inner=NUMERIC)


@pytest.mark.parametrize(
    ("text", "seen", "thinking"),
    [
        ("no tags: 5", "no tags: 5", False),
        ("<think>4?</think>5", "\n5", False),
        ("4?</think>5", "5", False),
        ("<think>", "", True),
        ("<think>4", "", True),
        ("5<think>4?</think>", "5\n", False),
        ("5<think>4?", "5", True),
        ("<think>a</think>5<think>b</think>6", "\n5\n6", False),
        ("a</think>5<think>b</think>6", "5\n6", False),
        ("<think>a<think>b</think>5", "\n5", False),  # no nesting
        ("<think>a</think>5</think>6", "\n5\n6", False),  # what closes nothing
        ("5 <THINK> 4 <think", "5 <THINK> 4 <think", False),
        ("<<think>4</think>>5", "<\n>5", False),
    ],
)
def test_what_is_seen_of_a_text(text: str, seen: str, thinking: bool) -> None:
    assert visible(text, TAGS)[:2] == (seen, thinking)


@pytest.mark.parametrize(
    ("text", "decision", "extracted"),
    [
        ("<think>\\boxed{4}? no</think> \\boxed{5}", "right", "5"),
        ("\\boxed{4}? no</think> \\boxed{5}", "right", "5"),
        ("<think>\\boxed{5}</think> \\boxed{4}", "wrong", "4"),
        ("<think>it is \\boxed{5}", "wrong", ""),
        ("<think>it is \\boxed{5}</think>", "wrong", ""),
        ("It is 5.<think>or", "wrong", ""),
        ("It is 5.", "right", "5"),
    ],
)
def test_an_answer_in_thinking_is_none(text: str, decision: str, extracted: str) -> None:
    for inner in (NUMERIC, FIRST):
        verdict = AfterThinking(inner=inner, open="<think>", close="</think>")(text, "5")
        assert (verdict.decision, verdict.extracted) == (decision, extracted)
    if text.startswith("<think>it is \\boxed{5}") and "</think>" not in text:
        assert verdict.reason == "no answer: the thinking was not closed by </think>"
        assert not verdict.explicit


def test_the_first_answer_is_the_first_outside_of_thinking() -> None:
    verifier = AfterThinking(inner=FIRST, open="<think>", close="</think>")
    text = "<think>\\boxed{4}</think> \\boxed{5} <think>\\boxed{6}</think> \\boxed{7}"
    assert verifier(text, "5").decision is Decision.RIGHT
    final = [verifier.final(text[:n]) for n in range(len(text) + 1)]
    assert final.index(True) == text.index("5}") + 2
    assert all(final[text.index("5}") + 2 :])
    assert not verifier.final("\\boxed{5} and")  # a closing tag could follow, and make thinking of it
    assert not AfterThinking(inner=NUMERIC, open="<think>", close="</think>").final(text)


FRAGMENTS = [
    "<think>",
    "</think>",
    "<thi",
    "nk>",
    "<",
    "/think>",
    "\\boxed{5}",
    "\\boxed{",
    "}",
    "#### 7\n",
    "6",
    "\n",
    " ",
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join), st.sampled_from([TAGS, ("5}", "<think>")]))
@example("<think></think>\\boxed{5}<think>", TAGS)
@example("5}\\boxed{5}<think>", ("5}", "<think>"))  # a tag that could take back the end of an answer
def test_nothing_later_changes_a_final_verdict(text: str, tags: tuple[str, str]) -> None:
    verifier = AfterThinking(inner=FIRST, open=tags[0], close=tags[1])
    whole = verifier(text, "5")
    for n in range(len(text) + 1):
        if verifier.final(text[:n]):
            assert verifier.final(text)
            assert verifier(text[:n], "5") == whole


def test_tags_are_part_of_the_fingerprint_and_none_are_no_verifier() -> None:
    assert after_thinking(NUMERIC, ThinkingTags("", "")) is NUMERIC
    prints = [verifier_fingerprint(after_thinking(NUMERIC, ThinkingTags(*tags))) for tags in (TAGS, ("[T]", "[/T]"))]
    assert len({*prints, verifier_fingerprint(NUMERIC)}) == 3
    assert json.loads(prints[0])["args"]["inner"] == json.loads(verifier_fingerprint(NUMERIC))
    for bad in (ThinkingTags("<think>", ""), ThinkingTags("", "x"), ThinkingTags("a", "a"), ThinkingTags("ab", "b")):
        with pytest.raises(BadValue, match=r"verify.thinking.(open|close): expected two different tags"):
            after_thinking(NUMERIC, bad)


WORDS = ["<eos>", "<think>", "</think>", "\\boxed{4}", "\\boxed{5}", " so", "<|think|>", "<|answer|>", "?"]


def tokenizer_of(
    words: Sequence[str] = WORDS, *, template: str = "{{ messages[0].content }}"
) -> PreTrainedTokenizerFast:
    """Words as tokens; those of <|...|> are special, as in models whose tags of thinking are."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    inner.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", chat_template=template)
    made.add_special_tokens({"additional_special_tokens": [word for word in words if word.startswith("<|")]})
    return made


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A prompt of these words."""

    words: tuple[str, ...]

    def ids(self, tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
        return [tokenizer.get_vocab()[word] for word in self.words]

    def end_id(self, tokenizer: PreTrainedTokenizerFast) -> int | None:
        return None

    def fingerprint(self) -> str:
        return ""


def graded(
    verifier: Verifier, tokenizer: PreTrainedTokenizerFast, prompt: tuple[str, ...], *words: str, finish: str = "stop"
) -> tuple[Outcome, str, bool]:
    """Outcome, answer, and whether the verdict was final at the end."""
    grader = Grader.of(
        verifier,
        tokenizer=tokenizer,
        prompt=Fixed(prompt),  # pyright: ignore[reportArgumentType]
        verify_all=lambda items: [verifier(*item) for item in items],
    )
    ids = [tokenizer.get_vocab()[word] for word in words]
    ((outcome, answer),) = grader([(Completion(np.array(ids, np.int32), finish, len(ids)), "5")])  # type: ignore[arg-type]
    return outcome, answer, grader.decided(ids)


@pytest.mark.parametrize("kind", ["<think>", "<|think|>"])
def test_tags_that_are_words_and_tags_that_are_special_tokens(kind: Literal["<think>", "<|think|>"]) -> None:
    opened, closed = (kind, {"<think>": "</think>", "<|think|>": "<|answer|>"}[kind])
    verifier = AfterThinking(inner=FIRST, open=opened, close=closed)
    tokenizer = tokenizer_of()
    response = (opened, "\\boxed{4}", closed, "\\boxed{5}")
    assert graded(verifier, tokenizer, (" so",), *response) == (Outcome.RIGHT, "5", True)
    assert graded(verifier, tokenizer, (" so",), *response[:2]) == (Outcome.WRONG, "", False)
    assert graded(verifier, tokenizer, (" so",), *response[:2], finish="length") == (Outcome.CUT_OFF, "", False)
    assert graded(verifier, tokenizer, (" so",), *response[:2], finish="memory")[0] is Outcome.UNDECIDED


@pytest.mark.parametrize(
    ("prompt", "words", "expected"),
    [
        # The prompt opened the thinking: the answer in it is none, and never decided.
        ((" so", "<think>"), ("\\boxed{5}",), (Outcome.WRONG, "", False)),
        ((" so", "<think>"), ("\\boxed{4}", "</think>", "\\boxed{5}"), (Outcome.RIGHT, "5", True)),
        # It closed it.
        (("<think>", "</think>"), ("\\boxed{5}",), (Outcome.RIGHT, "5", True)),
        # Who knows: a closing tag may come.
        ((" so",), ("\\boxed{5}",), (Outcome.RIGHT, "5", False)),
        ((" so",), ("\\boxed{4}", "</think>", "\\boxed{5}"), (Outcome.RIGHT, "5", True)),
    ],
)
def test_the_prompt_says_where_a_response_begins(
    prompt: tuple[str, ...], words: tuple[str, ...], expected: tuple[Outcome, str, bool]
) -> None:
    assert graded(after_thinking(FIRST, TAGS), tokenizer_of(), prompt, *words) == expected


def test_where_nothing_speaks_of_thinking_the_first_answer_ends_a_rollout() -> None:
    plain = [word for word in WORDS if "think" not in word]
    verifier = after_thinking(FIRST, TAGS)
    assert graded(verifier, tokenizer_of(plain), (" so",), "\\boxed{5}") == (Outcome.RIGHT, "5", True)
    speaks = tokenizer_of(plain, template="{{ messages[0].content.split('</think>')[-1] }}")
    assert graded(verifier, speaks, (" so",), "\\boxed{5}") == (Outcome.RIGHT, "5", False)


def test_another_verifier_sees_the_response_as_it_is() -> None:
    exact = Exact(case_sensitive=True, fallback_last_line=True)
    assert graded(exact, tokenizer_of(), (" so",), "<think>", "\\boxed{5}") == (Outcome.RIGHT, "5", False)
