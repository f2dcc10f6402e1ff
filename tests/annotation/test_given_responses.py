"""Responses that someone brings: conversations by the chat template, thinking that the prompt opened, rows as problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from cft.annotation.responses import GivenResponses, asked
from cft.commands import train_command
from cft.config.build import CONF_DIR
from cft.data.problem_rows import ProblemError
from cft.data.rows_as_problems import row_problems, with_answers
from cft.prompts.chat import Chat, Plain, TextError
from cft.types import NO_THINKING, Outcome, Problem, ThinkingTags
from cft.verifiers import AfterThinking, Numeric
from cft.verifiers.grader import Grader
from tests.chat_templates import CHATML, FORGETFUL, MARKED, byte_tokenizer

CHAT = Chat(system="", template="{question}")
TAGS = ThinkingTags("<think>", "</think>")
TURNS = (
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "<think>two twos</think>4"},
    {"role": "user", "content": "And 1?"},
    {"role": "assistant", "content": "<think>4 + 1</think>It is 5"},
)
OPENED = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def given(
    template: str, problem: Problem, *, prompt: Any = CHAT, thinking: ThinkingTags = TAGS
) -> tuple[str, str, str]:
    """Text of the prompt, of the response, and how it ended."""
    tokenizer = byte_tokenizer(template)
    ends = [int(tokenizer.convert_tokens_to_ids("<|im_end|>"))]
    responses = GivenResponses(tokenizer, prompt, eos_ids=ends, max_new_tokens=200, thinking=thinking)
    prompt_ids, completion = responses(problem)
    return str(tokenizer.decode(prompt_ids)), str(tokenizer.decode(completion.ids)), completion.finish


@pytest.mark.parametrize("template", [CHATML, MARKED, FORGETFUL])
def test_a_conversation_s_last_turn_is_the_response_and_the_rest_its_prompt(template: str) -> None:
    tokenizer = byte_tokenizer(template)
    problem = Problem("p", "", "5", "It is 5", TURNS)
    prompt, response, finish = given(template, problem)
    whole = tokenizer.apply_chat_template(list(TURNS), tokenize=False)
    assert response == "<think>4 + 1</think>It is 5<|im_end|>"
    assert finish == "stop"
    assert whole.startswith(prompt + response)
    expected = tokenizer.apply_chat_template(list(TURNS[:-1]), add_generation_prompt=True, tokenize=False)
    assert prompt == expected
    assert tokenizer.decode(asked(problem, tokenizer, CHAT)) == expected  # what the model itself is asked with


def test_a_conversation_needs_a_chat_template() -> None:
    with pytest.raises(TextError, match="prompt=chat"):
        given(CHATML, Problem("p", "", "5", "5", TURNS), prompt=Plain(template="{question}"))


@pytest.mark.parametrize(
    ("template", "solution", "response"),
    [
        (OPENED, "<think>\n4 + 1\n</think>\n\\boxed{5}", "4 + 1\n</think>\n\\boxed{5}<|im_end|>"),
        (OPENED, "4 + 1</think>\\boxed{5}", "4 + 1</think>\\boxed{5}<|im_end|>"),
        (CHATML, "<think>4 + 1</think>\\boxed{5}", "<think>4 + 1</think>\\boxed{5}<|im_end|>"),
    ],
)
def test_thinking_that_the_prompt_opened_is_not_opened_twice(template: str, solution: str, response: str) -> None:
    prompt, found, _ = given(template, Problem("p", "4 + 1?", "5", solution))
    assert found == response
    assert (prompt + found).count("<think>") == 1


@pytest.mark.parametrize(
    ("solution", "outcome"),
    [
        ("<think>is it \\boxed{4}?</think>\\boxed{5}", Outcome.RIGHT),
        ("<think>is it \\boxed{5}?</think>\\boxed{4}", Outcome.WRONG),
        ("<think>it is \\boxed{5}", Outcome.WRONG),
    ],
)
def test_a_given_response_is_graded_on_its_answer(solution: str, outcome: Outcome) -> None:
    tokenizer = byte_tokenizer(OPENED)
    verifier = AfterThinking(inner=Numeric(fallback_last_number=True), open="<think>", close="</think>")
    grader = Grader.of(
        verifier, tokenizer=tokenizer, prompt=CHAT, verify_all=lambda items: [verifier(*item) for item in items]
    )
    ends = [int(tokenizer.convert_tokens_to_ids("<|im_end|>"))]
    responses = GivenResponses(tokenizer, CHAT, eos_ids=ends, max_new_tokens=200, thinking=TAGS)
    ((found, _),) = grader([(responses(Problem("p", "4 + 1?", "5", solution))[1], "5")])
    assert found == outcome


def test_tags_of_thinking_are_tokens_though_the_template_writes_them() -> None:
    """Special tokens that templates write are else spelt out: nobody smuggles the end of a turn into a response."""
    tokenizer = byte_tokenizer(OPENED.replace("<think>", "<answer>"))  # <answer> is a special token there
    ends = [int(tokenizer.convert_tokens_to_ids("<|im_end|>"))]
    text = "x <answer>5"
    token = tokenizer.convert_tokens_to_ids("<answer>")
    counts = []
    for thinking in (ThinkingTags("<answer>", "</answer>"), NO_THINKING):
        make = GivenResponses(tokenizer, CHAT, eos_ids=ends, max_new_tokens=200, thinking=thinking)
        counts.append(int((make(Problem("p", "4 + 1?", "5", text))[1].ids == token).sum()))
    assert counts == [1, 0]


def keys(path: Path, **changes: object) -> dict[str, Any]:
    tree = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "data" / "rows.yaml"))
    assert isinstance(tree, dict)
    return {**tree, "path": str(path), "max_bad_rows": 0.6, **changes}  # type: ignore[dict-item]


def test_rows_as_problems(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    file = tmp_path / "chats.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": "1 + 1?", "completion": "1 + 1 = 2\n#### 2"},
        {"messages": [*TURNS, {"role": "user", "content": "Thanks"}]},
        {"messages": [{"role": "user", "content": "3?"}, {"role": "assistant", "content": "\\boxed{3}", "weight": 0}]},
        {"prompt": "1 + 1?", "completion": "No idea"},
        {"prompt": "1 + 1?", "completion": "1 + 1 = 2\n#### 2"},
        {"input_ids": [1, 2], "labels": [-100, 2]},
        {"messages": [{"role": "assistant", "content": "3"}, {"role": "user", "content": "3?"}]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = row_problems(keys(file))
    assert splits.dropped == {
        "duplicate row": 1,
        "no assistant turn after another message": 1,
        "no loss": 1,
        "nothing to annotate": 1,
    }
    answered = with_answers(splits, thinking=TAGS)
    assert [(p.question, p.answer, len(p.messages)) for p in answered.train] == [("1 + 1?", "2", 0)]
    assert sum(answered.dropped.values()) == 6  # two more without a final answer: "It is 5" is in no marker
    (thanked,) = [p for p in splits.train if len(p.messages) == 4]  # the turns behind the assistant's last are left out
    assert (thanked.question, thanked.solution) == ("2 + 2?\n\nAnd 1?", "<think>4 + 1</think>It is 5")
    file.write_text(json.dumps({"prompt": "1?", "completion": "one"}) + "\n")
    with pytest.raises(ProblemError, match=r"data\.answer_field"):
        with_answers(row_problems(keys(file)), thinking=TAGS)
    named = row_problems(keys(file, answer_field="completion"))
    assert [p.answer for p in named.train] == ["one"]
    assert named.fingerprint != row_problems(keys(file)).fingerprint
    assert len(recwarn) > 0


def test_the_command_that_trains_on_annotated_rows_tests_no_problems() -> None:
    overrides = ["data=rows", "data.path=chats.jsonl", "responses=given", "model=smollm2"]
    command = train_command(Path("made/a"), overrides, choices={"data": "rows", "model": "smollm2"})
    assert "rows" not in command.split("data.annotation=a")[1]
    assert "chats" not in command
    assert "evaluation.problems=0" in command
    assert np.isin(["model=smollm2", "callbacks=best_loss"], command.split()).all()
