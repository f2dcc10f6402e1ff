"""Instructions that a program can check: each followed and broken, by the ids of IFEval."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from cft.benchmarks.rows import LAYOUTS
from cft.data.problem_rows import json_lines
from cft.types import Decision
from cft.verifiers import Instructions
from cft.verifiers.instructions import RULES

CHECK = Instructions()
CASES = {
    "keywords:existence": ({"keywords": ["Ada", "pen"]}, "ADA has pens", "Ada has cups"),
    "keywords:frequency": ({"keyword": "pen", "frequency": 2, "relation": "at least"}, "Pen, pencil", "pen"),
    "keywords:forbidden_words": ({"forbidden_words": ["pen"]}, "pencil", "a Pen."),
    "keywords:letter_frequency": ({"letter": "a", "let_frequency": 2, "let_relation": "less than"}, "cat", "A cat"),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a\n***\n***\nb"),
    "length_constraints:number_words": ({"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
        "a\n\n'So, b",
        "so\n\nb",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[name] [day]", "[name]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Bye.\nP. S. More", "Bye. PS"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n- b", "* a\n** b"),
    "detectable_format:constrained_response": ({}, "My answer is no.", "No."),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* and *b*", "*a* and * *"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION one\nSECTION 2",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "detectable_format:title": ({}, "<<Joy>>\na", "<< >>\na"),
    "combination:two_responses": ({}, "a\n******\nb", "a\n******\na"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it."}, "say it. It.", "It. Say it."),
    "startend:end_checker": ({"end_phrase": "The end."}, 'So. The end."', "The end. So"),
    "startend:quotation": ({}, '"a"', '"a'),
    "change_case:capital_word_frequency": ({"capital_frequency": 2, "capital_relation": "at least"}, "A BC d", "A bc"),
    "change_case:english_capital": ({}, "ALL 5", "All"),
    "change_case:english_lowercase": ({}, "all 5", "All"),
    "punctuation:no_comma": ({}, "a b", "a, b"),
}


def asked(*rules: tuple[str, Mapping[str, object]]) -> str:
    return json.dumps([list(rule) for rule in rules])


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_is_followed_or_broken(name: str) -> None:
    arguments, good, bad = CASES[name]
    gold = asked((name, arguments))
    assert CHECK(good, gold).decision == "right"
    assert CHECK(bad, gold).decision == "wrong"
    assert CHECK(bad, gold).extracted == f"breaks {name}"


def test_one_that_is_broken_is_enough_and_one_that_is_not_exact_leaves_it_open() -> None:
    comma, language = ("punctuation:no_comma", {}), ("language:response_language", {"language": "de"})
    assert CHECK("a b", asked(comma, language)).decision is Decision.UNDECIDED
    assert CHECK("a b", asked(comma, language)).reason == "language:response_language cannot be checked exactly"
    assert CHECK("a, b", asked(comma, language)).decision is Decision.WRONG
    assert CHECK("a b", asked(comma, ("other:rule", {}))).reason == "other:rule is not known"
    assert CHECK(" ", asked(comma)).decision is Decision.WRONG


@pytest.mark.parametrize("answer", ["", "5", "[]", "[[1]]", asked(("keywords:frequency", {"keyword": "a"}))])
def test_what_is_no_list_of_instructions_is_undecided(answer: str) -> None:
    assert CHECK("a", answer).decision is Decision.UNDECIDED


def test_rows_of_the_published_layout_are_read_with_whole_numbers_and_without_nulls() -> None:
    path = Path(__file__).parent.parent / "benchmarks" / "samples" / "ifeval.jsonl"
    row = next(json_lines(path)).value
    assert row is not None
    gold = LAYOUTS["ifeval"].read(row)[1]
    assert json.loads(gold) == [
        ["punctuation:no_comma", {}],
        ["length_constraints:number_words", {"num_words": 3, "relation": "at least"}],
    ]
    assert [CHECK(text, gold).decision for text in ("apples pears plums", "apples, pears, plums")] == ["right", "wrong"]
