"""Rows of multiple-choice benchmarks. The question lists the options as (A) ..., one per line; the gold answer is `(B) text`,
which `verifier=options` grades by letter or text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from cft.data.problem_rows import BadRow, fields_found, read_field

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Row = Mapping[str, Any]
Parts = tuple[str, str, str]


def mmlu(row: Row) -> Parts:
    """The answer is the number of an option, from 0."""
    return _asked(row, "question", _texts(row, "choices"), _number(row, "answer"))


def mmlu_pro(row: Row) -> Parts:
    """Up to ten options; the answer is a letter. N/A entries are padding of the published file and are dropped."""
    options = _texts(row, "options")
    answer = LETTERS.find(read_field(row, "answer").strip().upper() or "?")
    while options and options[-1].strip() == "N/A" and answer < len(options) - 1:
        options.pop()
    return _asked(row, "question", options, answer, solution=_solution(row, "cot_content"))


def gpqa(row: Row) -> Parts:
    """One right answer and three wrong ones without an order: they are sorted by sha256(Record ID, option), which is
    reproducible and independent of the answer. A row without an id uses the text of its question.
    """
    right = read_field(row, "Correct Answer").strip()
    wrong = [read_field(row, f"Incorrect Answer {i}").strip() for i in (1, 2, 3)]
    record = row.get("Record ID")
    record = record if isinstance(record, str) and record else read_field(row, "Question").strip()

    def place(option: str) -> str:
        return hashlib.sha256(f"{record}\x1f{option}".encode()).hexdigest()

    options = sorted([right, *wrong], key=place)
    return _asked(row, "Question", options, options.index(right), solution=_solution(row, "Explanation"))


def commonsense_qa(row: Row) -> Parts:
    """`choices` holds letters and texts; the test split has no answers, so the validation split is used."""
    choices = row.get("choices")
    if not isinstance(choices, Mapping):
        raise BadRow(_missing(row, "choices", "a table of label and text"))
    labels, texts = _texts(choices, "label"), _texts(choices, "text")
    if labels != list(LETTERS[: len(texts)]):
        raise BadRow(f"choices.label: expected {', '.join(LETTERS[: len(texts)])}, found {', '.join(labels)}")
    return _asked(row, "question", texts, LETTERS.find(read_field(row, "answerKey").strip() or "?"))


def medqa(row: Row) -> Parts:
    """`options` is a table of letters and texts; the right letter is `answer_idx`."""
    options = row.get("options")
    if not isinstance(options, Mapping) or list(options) != list(LETTERS[: len(options)]):
        raise BadRow(_missing(row, "options", "a table from A on"))
    texts = [read_field(options, letter).strip() for letter in options]
    return _asked(row, "question", texts, LETTERS.find(read_field(row, "answer_idx").strip() or "?"))


def _asked(row: Row, question: str, options: Sequence[str], answer: int, *, solution: str = "") -> Parts:
    if not 2 <= len(options) <= len(LETTERS) or not 0 <= answer < len(options):
        raise BadRow(f"no such option: expected the answer to be one of {len(options)} options")
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"{read_field(row, question).strip()}\n{listed}", f"({LETTERS[answer]}) {options[answer]}", solution


def _texts(row: Row, name: str) -> list[str]:
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BadRow(_missing(row, name, "a list of texts"))
    return [one.strip() for one in value]


def _number(row: Row, name: str) -> int:
    value = row.get(name)
    try:
        return int(str(value))
    except ValueError:
        raise BadRow(_missing(row, name, "the number of an option, from 0")) from None


def _missing(row: Row, name: str, expected: str) -> str:
    kind = "wrong type" if name in row else "missing field"
    return f"{kind}: {name}, expected {expected} ({fields_found(row)})"


def _solution(row: Row, name: str) -> str:
    value = row.get(name)
    return value.strip() if isinstance(value, str) else ""
