"""Converts user-provided rows to problems with responses, for `cft annotate data=rows`.

    prompt, completion       the question and its solution
    messages (tools)         a conversation: its last assistant turn is the response, the preceding messages are the prompt

Weights of messages apply only to training directly on the rows. In an annotated response, the mask determines which tokens
carry loss, so weights are ignored, and rows with weights are counted. Rows of token ids or weighted spans cannot be annotated
and are counted as bad rows.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from cft.console import console
from cft.data.problem_rows import BadRow, ProblemError, Quarantine, Row, content_hash, read_field
from cft.data.row_contents import REMEDY, Pair, RowFields, Talk, unread_notes
from cft.data.row_files import file_rows
from cft.data.splits import Splits, splits_of
from cft.types import ASSISTANT, Problem, ThinkingTags
from cft.verifiers.extract import explicit_answer, phrase_answer
from cft.verifiers.thinking import visible


def problems_of(data: Splits | partial[Any]) -> Splits:
    """The problems of a configured `data`: its own, or those made from `data=rows`, of which only some keys are used."""
    return data if isinstance(data, Splits) else row_problems(data.keywords)


def row_problems(keys: Mapping[str, Any]) -> Splits:
    """All rows as problems in the train split, without duplicates. keys: settings as in conf/data/rows.yaml.

    Raises:
        ProblemError: No such file or data set, more bad rows than `max_bad_rows`, or no rows remain.
    """
    path = str(keys["path"])
    rows = file_rows(path, config=keys["config"], revision=keys["revision"], split=keys["split"])
    chosen = list(islice(rows, None if keys["max_rows"] < 0 else keys["max_rows"]))
    quarantine = Quarantine(path, keys["max_bad_rows"], remedy=REMEDY)
    problems: dict[str, Problem] = {}
    weighed, unread, fields = 0, Counter[str](), fields_of(keys)
    for row in chosen:
        try:
            problem = problem_of(row, keys)
            if problem.id in problems:
                raise BadRow(f"duplicate id: {problem.id}" if keys["id_field"] else "duplicate row")
            problems[problem.id] = problem
            weighed += _has_weights((row.value or {}).get(keys["messages_field"]))
            unread.update(fields.unread(row.value or {}))
        except BadRow as error:
            quarantine.add(row, reason=str(error))
    quarantine.report(rows=len(chosen))
    for note in unread_notes(unread):
        console.print(note, markup=False)
    if weighed:
        console.print(
            f"Note: {weighed} rows have weights of messages. Only the last assistant turn is annotated, without its weight; "
            "cft train data=rows trains on rows with their weights",
            markup=False,
        )
    return splits_of(
        name=Path(path).stem, seed=0, train=problems.values(), validation=(), test=(), dropped=quarantine.counts
    )


def with_answers(splits: Splits, *, thinking: ThinkingTags) -> Splits:
    """Set missing gold answers to the final answer of the problem's own response.

    It is read outside of thinking, from a marker (boxed, ####, <answer>) or a phrase ("the answer is"). Problems without such
    an answer are dropped and counted.

    Raises:
        ProblemError: no problem has an answer.
    """
    answered = [
        problem if problem.answer else replace(problem, answer=_final_answer(problem.solution, thinking))
        for problem in splits.train
    ]
    kept = tuple(problem for problem in answered if problem.answer)
    if not kept:
        raise ProblemError(
            f'data {splits.name}: none of its {len(answered)} responses gives a final answer (\\boxed, ####, <answer>, "the '
            'answer is"), and no field of gold answers is set; expected data.answer_field=...'
        )
    dropped = Counter(splits.dropped)
    if lacking := [problem.place for problem in answered if not problem.answer]:
        where = first_place(lacking)
        reason = f"no final answer in the response, first {where}; name a field of answers with data.answer_field"
        dropped[reason] = len(lacking)
    return replace(splits, train=kept, dropped=dict(dropped))


def first_place(places: Iterable[str]) -> str:
    """The first of the places in their file; problems have another order."""
    return min(places, key=lambda place: [int(part) if part.isdecimal() else 0 for part in re.split(r"(\d+)", place)])


def wants_answers(splits: Splits) -> bool:
    return any(not problem.answer for problem in splits.train)


def _final_answer(response: str, thinking: ThinkingTags) -> str:
    text = visible(response, thinking).text if any(thinking) else response
    found = explicit_answer(text) or phrase_answer(text)
    return found.text if found else ""


def fields_of(keys: Mapping[str, Any]) -> RowFields:
    """The names of the fields, of rows of which the assistant's last turn is annotated."""
    names = {name: keys[f"{name}_field"] for name in ("prompt", "completion", "messages", "id", "answer")}
    return RowFields(keys["shape"], **names)


def problem_of(row: Row, keys: Mapping[str, Any]) -> Problem:
    """The problem of a row. keys: settings as in conf/data/rows.yaml. Raises BadRow."""
    if row.value is None:
        raise BadRow(row.reason)
    value = row.value
    fields = fields_of(keys)
    shape = fields.shape_of(value)
    if shape not in ("text", "messages"):
        raise BadRow(
            f"nothing to annotate: rows of {shape} are not problems, expected prompt and completion, or messages"
        )
    answer = read_field(value, fields.answer, numbers=True) if fields.answer else ""
    contents = fields.read(value)
    if isinstance(contents, Pair):
        question, solution = contents.prompt, contents.completion
        return Problem(_id(value, keys, question, solution, answer), question, answer, solution, place=row.place)
    assert isinstance(contents, Talk)
    messages, weights = contents.messages, contents.weights
    last = max((i for i, message in enumerate(messages) if message["role"] == ASSISTANT), default=0)
    if not last:
        raise BadRow("no assistant turn after another message: this turn is the response to annotate")
    if weights[last] == 0:
        raise BadRow("no loss: the last assistant turn, which is the response, has weight 0")
    turns = tuple(messages[: last + 1])
    question = "\n\n".join(str(turn["content"]) for turn in turns if turn["role"] == "user")
    return Problem(
        _id(value, keys, json.dumps(turns, sort_keys=True, ensure_ascii=False, default=str), "", answer),
        question,
        answer,
        str(turns[-1]["content"]),
        turns,
        tuple(contents.tools),
        row.place,
    )


def _has_weights(messages: Any) -> bool:
    return isinstance(messages, list) and any(message.get("weight", 1) != 1 for message in messages)


def _id(value: Mapping[str, Any], keys: Mapping[str, Any], *contents: str) -> str:
    if keys["id_field"]:
        return read_field(value, keys["id_field"], numbers=True)
    return content_hash(*contents)
