"""Rows of every shape, made from the word problems of `tiny_arith`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cft.data import word_problems
from cft.types import Problem

SHAPES = ("text", "messages", "tokens", "spans")


def problems(count: int = 40) -> list[Problem]:
    stream = word_problems.problems(seed=7, split="train", min_steps=2, max_steps=3)
    return [problem for _, problem in islice(stream, count)]


def rows(shape: str, *, tokenizer: Any, count: int = 40) -> list[dict[str, Any]]:
    """One row per problem, with its gold answer."""
    if shape == "messages":
        pairs = zip(problems(count), problems(2 * count)[count:], strict=True)
        return [{**_messages(first, second), "answer": second.answer} for first, second in pairs]
    make = {"text": _text, "tokens": lambda p: _tokens(p, tokenizer), "spans": _spans}[shape]
    return [{**make(problem), "answer": problem.answer} for problem in problems(count)]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _text(problem: Problem) -> dict[str, Any]:
    return {"prompt": problem.question, "completion": problem.solution}


def _messages(*problems: Problem) -> dict[str, Any]:
    """Two questions; the first answer has weight 0.5."""
    messages: list[dict[str, Any]] = []
    for weight, problem in zip((0.5, 1), problems, strict=True):
        messages.append({"role": "user", "content": problem.question})
        messages.append({"role": "assistant", "content": problem.solution, "weight": weight})
    return {"messages": messages}


def _tokens(problem: Problem, tokenizer: Any) -> dict[str, Any]:
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": problem.question}], return_dict=True)[
        "input_ids"
    ]
    response = [*tokenizer(problem.solution, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    weights = [0.0] * len(prompt) + [1.0 + (i % 4) / 4 for i in range(len(response))]
    return {"input_ids": prompt + response, "labels": [-100] * len(prompt) + response, "weights": weights}


def _spans(problem: Problem) -> dict[str, Any]:
    steps, mark, answer = problem.solution.rpartition("\n####")
    return {
        "prompt": problem.question,
        "segments": [{"text": steps, "weight": 0.25}, {"text": mark + answer, "label": True}],
    }
