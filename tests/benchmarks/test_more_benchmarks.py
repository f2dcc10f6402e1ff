"""Benchmarks with options, programs and instructions: rows of our own in the published layouts, by each one's config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cft.benchmarks.rows import LAYOUTS
from cft.benchmarks.sets import Suite, members_of
from cft.config.build import build
from cft.data.problem_rows import BadRow, json_lines
from cft.data.splits import Splits
from cft.types import Problem
from cft.verifiers import Code
from tests.stage import composed

SAMPLES = Path(__file__).parent / "samples"
NAMES = sorted(path.stem for path in SAMPLES.glob("*.jsonl"))


def made(name: str) -> Splits | Suite:
    return build(composed("evaluate", f"benchmark={name}", f"data.dir={SAMPLES}").benchmark)


def problems(name: str) -> dict[str, Problem]:
    """By the question's beginning."""
    splits = made(name)
    assert isinstance(splits, Splits)
    return {problem.question[:20]: problem for problem in splits.of("test")}


def test_a_copy_of_a_hub_repository_gives_the_rows_of_its_split(tmp_path: Path) -> None:
    """MedQA by the file names of its repository: the test split, not that for training."""
    lines = (SAMPLES / "medqa.jsonl").read_text().splitlines(keepends=True)
    for split, text in (("train", lines[0].replace("?", " today?")), ("test", "".join(lines))):
        (tmp_path / f"phrases_no_exclude_{split}.jsonl").write_text(text)
    copied = build(composed("evaluate", "benchmark=medqa", f"benchmark.hub_id={tmp_path}").benchmark)
    expected = made("medqa")
    assert isinstance(expected, Splits)
    assert copied.test == expected.test
    assert len(copied.test) == len(lines)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_every_layout_are_problems_whose_gold_answer_is_right(name: str) -> None:
    splits = made(name)
    assert isinstance(splits, Splits)
    rows = list(json_lines(SAMPLES / f"{name}.jsonl"))
    assert len(splits.of("test")) == len(rows)
    assert splits.verifier is not None
    if isinstance(splits.verifier, Code) or name == "ifeval":
        return  # below
    for problem in splits.of("test"):
        others = [p.answer for p in splits.of("test") if p is not problem]
        assert splits.verifier(f"So it is \\boxed{{{problem.answer}}}.", problem.answer).decision == "right"
        assert splits.verifier(f"So it is \\boxed{{{others[0]}}}.", problem.answer).decision == "wrong"


def test_options_are_listed_with_letters_and_are_right_by_letter_or_text() -> None:
    splits = made("mmlu_pro")
    assert isinstance(splits, Splits)
    assert (verifier := splits.verifier) is not None
    tenth = problems("mmlu_pro")["Which letter is the "]
    assert tenth.question.endswith("\n(I) I\n(J) J")
    assert tenth.answer == "(J) J"
    assert [verifier(text, tenth.answer).decision for text in ("\\boxed{J}", "The answer is (I).")] == [
        "right",
        "wrong",
    ]
    assert "N/A" not in problems("mmlu_pro")["What is the square o"].question
    assert problems("mmlu")["Which of these is a "].answer == "(C) 11"
    assert problems("commonsense_qa")["Where do you keep mi"].answer == "(B) refrigerator"
    assert problems("medqa")["Which organ makes in"].answer == "(A) Pancreas"


def test_the_order_of_gpqa_is_that_of_a_hash_and_says_nothing_of_the_answer() -> None:
    (row, _) = (row.value for row in json_lines(SAMPLES / "gpqa_diamond.jsonl"))
    assert row is not None
    question, answer, _ = LAYOUTS["gpqa"].read(row)
    lines = question.split("\n")[1:]
    assert lines == ["(A) Its shape", "(B) Its energy", "(C) Its temperature", "(D) Its entropy"]
    assert answer == "(B) Its energy"
    swapped = {**row, "Correct Answer": row["Incorrect Answer 2"], "Incorrect Answer 2": row["Correct Answer"]}
    assert LAYOUTS["gpqa"].read(swapped)[0] == question
    places = [LAYOUTS["gpqa"].read({**row, "Record ID": f"rec{i}"})[1][1] for i in range(200)]
    assert all(30 < places.count(letter) < 70 for letter in "ABCD")


def test_the_test_of_a_program_names_what_it_takes_from_it() -> None:
    found = {key: json.loads(problem.answer) for key, problem in {**problems("humaneval"), **problems("mbpp")}.items()}
    assert [found[key]["names"] for key in ("from typing import L", "def encode(text: str")] == [
        ["largest_gap"],
        ["decode"],
    ]
    by_names = {tuple(json.loads(p.answer)["names"]) for p in made("mbpp").of("test")}
    assert by_names == {("sum",), ("Node", "height"), ("area",)}


@pytest.mark.parametrize(
    ("layout", "change", "said"),
    [
        ("mmlu", {"answer": 7}, "no such option"),
        ("mmlu", {"answer": "B"}, "wrong type: answer, expected the number of an option, from 0"),
        ("mmlu_pro", {"answer": "K"}, "no such option"),
        ("commonsense_qa", {"answerKey": ""}, "empty field: answerKey"),
        ("commonsense_qa", {"choices": ["a"]}, "wrong type: choices, expected a table of label and text"),
        ("mbpp", {"test_list": []}, "test_list, expected a list of assertions"),
        ("mbpp", {"code": "def other(): pass"}, "no function or class of it is in test_list"),
        ("mbpp", {"code": "def f(:"}, "wrong code: SyntaxError"),
        ("ifeval", {"kwargs": []}, "expected lists of one length"),
    ],
)
def test_a_row_that_does_not_fit_says_what_was_expected(layout: str, change: dict[str, object], said: str) -> None:
    row = next(json_lines(SAMPLES / f"{layout}.jsonl")).value
    assert row is not None
    with pytest.raises(BadRow, match=said):
        LAYOUTS[layout].read({**row, **change})


@pytest.mark.parametrize(("suite", "count"), [("reasoning", 5), ("knowledge", 5)])
def test_suites_of_today(suite: str, count: int) -> None:
    assert len(members_of(made(suite))) == count
