"""From ids to the text that is graded: what a model says stays, what ends a turn goes."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from cft.models.text import char_spans, decode
from cft.types import Completion, Outcome, Verifier
from cft.verifiers import FirstAnswer, Numeric
from cft.verifiers.grader import Grader

NUMERIC = Numeric(fallback_last_number=True)
SPECIAL = ["<eos>", "<pad>", "<|im_end|>", "<end_of_turn>", "<｜end▁of▁sentence｜>", "<answer>", "</answer>"]
PLAIN = [" 5", " ...", " 1 more", "12"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Words as tokens; <answer> is a special token, as where a model was trained to write it."""
    vocabulary = {text: i for i, text in enumerate(SPECIAL + PLAIN)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    return tokenizer


def ids(*tokens: str) -> list[int]:
    return [(SPECIAL + PLAIN).index(token) for token in tokens]


def test_special_tokens_that_a_model_answers_with_are_graded(tokenizer: PreTrainedTokenizerFast) -> None:
    response = ids("<answer>", " 5", "</answer>", " ...", " 1 more", "<eos>")
    assert decode(tokenizer, response) == "<answer> 5</answer> ... 1 more"
    grader = Grader(tokenizer, lambda items: [NUMERIC(*item) for item in items])
    assert grader([(Completion(np.array(response, np.int32), "stop", 6), "5")]) == [(Outcome.RIGHT, "5")]


@pytest.mark.parametrize("end", SPECIAL[:5])
def test_what_ends_a_turn_is_no_text(tokenizer: PreTrainedTokenizerFast, end: str) -> None:
    text, spans = char_spans(tokenizer, ids("<answer>", "12", "</answer>", end))
    assert text == "<answer>12</answer>"
    assert [text[a:b] for a, b in spans.tolist()] == ["<answer>", "12", "</answer>", ""]


@pytest.mark.parametrize(("verifier", "decided"), [(FirstAnswer(inner=NUMERIC), True), (NUMERIC, False)])
def test_only_a_verifier_that_can_be_final_is_asked_before_the_end(
    tokenizer: PreTrainedTokenizerFast, verifier: Verifier, decided: bool
) -> None:
    assert verifier.can_be_final is decided
    grader = Grader(tokenizer, lambda items: [], verifier.final if verifier.can_be_final else None)
    assert not grader.decided(ids("<answer>", "12"))
    assert grader.decided(ids("<answer>", "12", "</answer>")) is decided
