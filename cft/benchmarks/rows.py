r"""Rows of the field's benchmarks to (question, gold answer, worked solution): one function a layout, answers normalized.

A gold answer is stripped of dollar signs around it, `\boxed`, a trailing full stop, the unit that ASDiv puts in brackets, and
".0" and thousands separators of a number. Otherwise it stays as written: equality is decided by the verifier.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cft.benchmarks import choice_rows, task_rows
from cft.benchmarks.choice_rows import LETTERS, Parts, Row
from cft.data.problem_rows import BadRow, Number, fields_found, read_field
from cft.verifiers.extract import boxed_answer
from cft.verifiers.numbers import read_number


def svamp(row: Row) -> Parts:
    body = _body(row, "Body")
    body += "." if body and not body.endswith((".", ",", "?", "!")) else ""
    return f"{body} {read_field(row, 'Question').strip()}".strip(), _number(row, "Answer"), ""


def asdiv(row: Row) -> Parts:
    """`9 (apples)`: the bracket is the unit. It is kept if nothing else is there; a remainder and AM or PM are not units."""
    question = f"{_body(row, 'body')} {read_field(row, 'question').strip()}".strip()
    answer = re.sub(r"\(([ap]\.?m\.?)\)", r"\1", read_field(row, "answer", numbers=True), flags=re.IGNORECASE)
    without = re.sub(r"\s*\((?!r(?:emainder)?\s*[0-9])[^()]*\)", "", answer, flags=re.IGNORECASE).strip(" ;,")
    return question, normal_answer(without or answer), ""


def mawps(row: Row) -> Parts:
    return read_field(row, "input").strip(), _number(row, "target"), ""


def carp_en(row: Row) -> Parts:
    return read_field(row, "content").strip(), normal_answer(read_field(row, "answer", numbers=True)), ""


def tabmwp(row: Row) -> Parts:
    """The table as text; choices get letters, and the gold answer becomes `(B) text`."""
    title = _optional(row, "table_title")
    about = f' regarding "{title}"' if title else ""
    question = f"Read the following table{about} and answer a question:\n{read_field(row, 'table').strip()}\n"
    question += read_field(row, "question").strip()
    answer = read_field(row, "answer", numbers=True).strip()
    solution = _optional(row, "solution")
    choices = row.get("choices")
    if not choices:
        unit = _optional(row, "unit")
        return question + (f" (unit: {unit})" if unit else ""), _plain(answer), solution
    if not isinstance(choices, list) or answer not in choices or len(choices) > 26:
        raise BadRow("choices: expected a list of at most 26 that holds the answer")
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"{question}\nOptions: {options}", f"({LETTERS[choices.index(answer)]}) {answer}", solution


def boxed(row: Row) -> Parts:
    r"""MATH and Minerva: the answer is the content of the solution's last \boxed{}; a field `answer` takes precedence."""
    solution = _optional(row, "solution")
    answer = _optional(row, "answer") or boxed_answer(solution)
    if not answer:
        raise BadRow(f"no final answer: expected a \\boxed{{}} in solution, or a field answer ({fields_found(row)})")
    return _either(row, "problem", "question").strip(), normal_answer(answer), solution


def answered(row: Row) -> Parts:
    """question and answer, as in CollegeMath and the English Gaokao set."""
    return _either(row, "question", "problem").strip(), normal_answer(read_field(row, "answer", numbers=True)), ""


def olympiadbench(row: Row) -> Parts:
    """`final_answer` is a list with one entry in the text-only sets; that entry may hold several answers."""
    answers = row.get("final_answer")
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, (str, Number)) for a in answers):
        raise BadRow("wrong type: final_answer, expected a list of texts")
    context = _optional(row, "context")
    question = read_field(row, "question").strip()
    solution = row.get("solution")
    worked = solution[0] if isinstance(solution, list) and solution and isinstance(solution[0], str) else ""
    return (f"{context}\n{question}" if context else question), normal_answer(", ".join(answers)), worked


@dataclass(frozen=True, slots=True)
class RowLayout:
    """read: reads one row. fields: required (and optional) fields, for messages."""

    read: Callable[[Row], Parts]
    fields: str


# A new layout is a function above, an entry here, and its name in `Layout`, which the configuration check reads.
LAYOUTS = {
    "svamp": RowLayout(svamp, "Body, Question, Answer"),
    "asdiv": RowLayout(asdiv, "body, question, answer"),
    "mawps": RowLayout(mawps, "input, target"),
    "carp_en": RowLayout(carp_en, "content, answer"),
    "tabmwp": RowLayout(tabmwp, "question, table, answer (choices, unit, table_title, solution)"),
    "boxed": RowLayout(boxed, "problem or question, solution with a \\boxed{} or answer"),
    "answered": RowLayout(answered, "question or problem, answer"),
    "olympiadbench": RowLayout(olympiadbench, "question, final_answer (context, solution)"),
    "mmlu": RowLayout(choice_rows.mmlu, "question, choices, answer (the number of one)"),
    "mmlu_pro": RowLayout(choice_rows.mmlu_pro, "question, options, answer (a letter)"),
    "gpqa": RowLayout(choice_rows.gpqa, "Question, Correct Answer, Incorrect Answer 1 to 3 (Record ID, Explanation)"),
    "commonsense_qa": RowLayout(choice_rows.commonsense_qa, "question, choices with label and text, answerKey"),
    "medqa": RowLayout(choice_rows.medqa, "question, options by letter, answer_idx"),
    "humaneval": RowLayout(task_rows.humaneval, "prompt, test, entry_point (canonical_solution)"),
    "mbpp": RowLayout(task_rows.mbpp, "text or prompt, code, test_list (test_setup_code, test_imports)"),
    "ifeval": RowLayout(task_rows.ifeval, "prompt, instruction_id_list, kwargs"),
}
Layout = Literal[
    "svamp",
    "asdiv",
    "mawps",
    "carp_en",
    "tabmwp",
    "boxed",
    "answered",
    "olympiadbench",
    "mmlu",
    "mmlu_pro",
    "gpqa",
    "commonsense_qa",
    "medqa",
    "humaneval",
    "mbpp",
    "ifeval",
]


def normal_answer(text: str) -> str:
    r"""A gold answer without decoration: `$2 $` -> `2`, `$$x$$.` -> `x`, `\boxed{5}` -> `5`, `1,234` -> `1234`."""
    text = " ".join(text.split()).rstrip("`").strip()
    if inner := boxed_answer(text):
        text = inner
    if not text.endswith(("...", "\\.")) and not re.search(r"[A-Za-z]\.[A-Za-z]\.$", text):
        text = text.rstrip(".").strip() or text
    for mark in ("$$", "$"):
        inside = text[len(mark) : -len(mark)]
        if (
            len(text) > 2 * len(mark)
            and text.startswith(mark)
            and text.endswith(mark)
            and "$" not in inside.replace("\\$", "")
        ):
            text = inside.strip()
            break
    return _plain(text)


def _plain(text: str) -> str:
    """Integers in plain form: 33.0 is 33 and 1,234 is 1234."""
    if re.fullmatch(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?", text):
        text = text.replace(",", "")
    return re.sub(r"\.0+$", "", text) if re.fullmatch(r"-?[0-9]+\.0+", text) else text


def _number(row: Row, name: str) -> str:
    text = read_field(row, name, numbers=True).strip()
    if read_number(text, whole=True).value is None:
        raise BadRow(f"no number: {name}, expected one")
    return _plain(text)


def _optional(row: Row, name: str) -> str:
    value = row.get(name)
    return value.strip() if isinstance(value, str) else ""


def _body(row: Row, name: str) -> str:
    """The text before the question. It may be empty, but not missing."""
    empty = isinstance(row.get(name), str) and not row[name].strip()
    return "" if empty else read_field(row, name).strip()


def _either(row: Row, first: str, second: str) -> str:
    if first not in row and second not in row:
        raise BadRow(f"missing field: {first} or {second} ({fields_found(row)})")
    return read_field(row, first if first in row else second)
