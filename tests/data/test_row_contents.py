"""The spellings of rows: which give the same tokens, and what is wrong with those that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cft.data.problem_rows import BadRow
from cft.data.row_files import file_rows
from cft.data.row_shapes import RowReader
from cft.data.rows_as_problems import row_problems
from tests.chat_templates import FORGETFUL, byte_tokenizer
from tests.data.test_rows import CHAT, OPTIONS, given
from tests.given_rows import write

USER = {"role": "user", "content": "2?"}


def call(arguments: Any) -> dict[str, Any]:
    """An assistant's turn that calls a tool."""
    calls = [{"type": "function", "id": "1", "function": {"name": "add", "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"question": "2"}, "no known shape: expected prompt and completion.*the row has question"),
    ({"input_ids": [1], "messages": []}, "several shapes.*messages and tokens"),
    ({"messages": [{"role": "user", "content": "2"}]}, "no turn of assistant"),
    ({"messages": [{"content": "2"}]}, "no role: message 0"),
    ({"messages": [{"role": "user", "content": 2}]}, "content of message 0 is int"),
    (
        {"messages": [{"role": "user", "content": "2"}, {"role": "assistant", "content": "4", "weight": "x"}]},
        "bad weight",
    ),
    ({"prompt": "2", "completion": ""}, "empty field: completion"),
    ({"input_ids": [5, 6]}, "no loss is given"),
    ({"input_ids": [5, 6], "labels": [-100]}, "columns of several lengths"),
    ({"input_ids": [5, 6, 7], "labels": [6, 7, -100]}, "shifted labels"),
    ({"input_ids": [5, 6, 7], "labels": [-100, 9, 7]}, r"labels\[1\] is 9, input_ids\[1\] is 6"),
    ({"input_ids": [5, 99999], "labels": [-100, 99999]}, "ids of another tokenizer: 5 to 99999"),
    ({"input_ids": [5, 6], "weights": [0, float("nan")]}, r"weights\[1\] is nan, expected a finite number"),
    (
        {"input_ids": [5, 6], "weights": [0, 1e39]},
        r"weights\[1\] is 1e\+39, expected a finite number of at most 3.4e\+38",
    ),
    ({"input_ids": [[5], [6, 7]], "labels": [5, 6]}, r"input_ids\[0\] is list, expected a list of integers"),
    ({"input_ids": [5, 6], "labels": [-100, 6.0]}, r"labels\[1\] is float, expected a list of integers"),
    ({"input_ids": [5, 6], "weights": [0, None]}, r"weights\[1\] is missing, expected a list of numbers"),
    ({"input_ids": [], "labels": []}, "input_ids is an empty list"),
    ({"messages": []}, "messages is an empty list"),
    ({"messages": [USER, {"role": "assistant", "content": "4", "weight": 1e39}]}, "weight of message 1"),
    ({"messages": [USER, {"role": "assistant", "content": ""}]}, "empty field: content of message 1"),
    (
        {"messages": [USER, {"role": "assistant", "content": "4", "loss": False}]},
        "message 1 has loss, which is not read",
    ),
    (
        {"messages": [USER, {"role": "Assistant", "content": "4"}]},
        "no turn of assistant: found the roles user, Assistant",
    ),
    ({"messages": [{"from": "function_call", "value": "{}"}]}, "a tool call as text: message 0"),
    ({"messages": [{"value": "hi"}]}, "message 0 of messages has value, expected an object with role and content"),
    ({"messages": [USER, call("{")]}, "malformed JSON: arguments of a tool call of message 1"),
    ({"prompt": [USER], "completion": "4"}, "prompt is list and completion is str, expected two texts, or two lists"),
    (
        {"messages": [USER, {"role": "assistant", "content": "\ud800"}]},
        "lone surrogate: message 1 is not valid Unicode",
    ),
    ({"messages": [USER, call({"x": "\udfff"})]}, "lone surrogate: message 1 is not valid Unicode"),
    ({"messages": [USER, call({})], "tools": [{"name": "\ud800"}]}, "lone surrogate: tools is not valid Unicode"),
    ({"segments": [{"text": "\ud800", "weight": 1}]}, "lone surrogate: segments is not valid Unicode"),
    ({"conversations": [{"from": "human", "value": "2"}]}, "set data.messages_field=conversations"),
    ({"question": "2", "answer": "4"}, "set data.prompt_field=question data.completion_field=answer"),
    (
        {"instruction": "Add", "input": "2 2", "output": "4"},
        r"""set "data.prompt_field='\{instruction\} \{input\}'" data.completion_field=output""",
    ),
    ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1], "labels": [5, 6, 7]}, "attention_mask with a gap"),
    ({"input_ids": [5, 6], "labels": [5, -100]}, "no loss"),  # nothing predicts the first token
    ({"segments": [{"text": "2"}]}, "segment 0 has neither weight nor a label"),
    ({"segments": [{"text": "<|im_end|>", "label": True}]}, "spells the special token"),
    ({"text": "22", "spans": [{"start": 1, "end": 9, "weight": 1}]}, "no such span"),
]


@pytest.mark.parametrize(("value", "reason"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_row_that_cannot_be_read_says_why(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        RowReader(CHAT, byte_tokenizer())(value, place="here")


MESSAGES = [USER, {"role": "assistant", "content": "4"}]
SAME = [
    ({"messages": [{"from": "human", "value": "2?"}, {"from": "gpt", "value": "4"}]}, {}),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "2?"}]}, MESSAGES[1]]}, {}),
    ({"messages": [{**USER, "weight": None}, {**MESSAGES[1], "tool_calls": None}], "prompt": None, "tools": None}, {}),
    ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, {}),
    ({"prompt": "2?", "completion": "4"}, {}),
    ({"a": "2", "b": "?", "output": "4"}, {"prompt_field": "{a}{b}", "completion_field": "output"}),
    ({"a": "2?", "b": "", "output": "4"}, {"prompt_field": "{a} {b}", "completion_field": "output"}),
    ({"conversations": MESSAGES}, {"messages_field": "conversations"}),
]


@pytest.mark.parametrize(("value", "names"), SAME, ids=[str(i) for i in range(len(SAME))])
def test_spellings_of_a_chat_give_the_same_tokens(value: dict[str, Any], names: dict[str, str], tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    (row,) = given(write(tmp_path / "rows.jsonl", [value]), tokenizer, **dict[str, Any](names)).train_rows
    prompt, reply = "<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n", "4<|im_end|>\n"
    assert tokenizer.decode(row.ids) == prompt + reply
    asked = len(tokenizer(prompt)["input_ids"])
    assert row.weight.tolist() == [0.0] * asked + [1.0, 1.0, 0.0]


def test_arguments_and_tools_as_json_are_written_as_objects() -> None:
    """As templates expect them: as text they would be JSON within JSON."""
    tokenizer = byte_tokenizer(FORGETFUL)
    tool = {"name": "add", "parameters": {}}

    def text(arguments: Any, tools: Any) -> str:
        value = {"messages": [USER, call(arguments)], "tools": tools}
        return str(tokenizer.decode(RowReader(CHAT, tokenizer)(value, place="here").ids))

    expected = text({"x": 1}, [tool])
    assert '<tool_call>{"name": "add", "arguments": {"x": 1}}' in expected
    assert text('{"x": 1}', [json.dumps(tool)]) == text({"x": 1}, json.dumps([tool])) == expected


def test_an_empty_turn_without_loss_stays() -> None:
    tokenizer = byte_tokenizer()
    silent = {"role": "assistant", "content": "", "weight": 0}
    row = RowReader(CHAT, tokenizer)({"messages": [USER, silent, *MESSAGES]}, place="here")
    assert tokenizer.decode(row.ids[row.allowed]) == "4<|im_end|>"


def test_fields_that_are_not_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    brought = [
        {"messages": MESSAGES, "weight": 0.5, "chat_template_kwargs": {"x": 1}, "tools": [], "system": ""},
        {"prompt": "2?", "completion": "4", "tools": [{"name": "add"}], "system": "Be brief."},
    ]
    path = write(tmp_path / "rows.jsonl", brought)
    facts = given(path, byte_tokenizer()).facts()
    unread = {name: count for name, count in facts.items() if name.startswith("rows_with_unread")}
    names = ("weight", "chat_template_kwargs", "system", "tools")
    assert unread == {f"rows_with_unread_{name}": 1 for name in names}
    assert "Note: 1 rows have a field system, which is not read" in " ".join(capsys.readouterr().out.split())
    assert (
        "rows_with_unread_system"
        not in given(path, byte_tokenizer(), max_bad_rows=1.0, prompt_field="{system} {prompt}").facts()
    )
    row_problems({**OPTIONS, "path": str(path)})
    assert "Note: 1 rows have a field system, which is not read" in " ".join(capsys.readouterr().out.split())


def test_a_number_of_any_length_is_an_id(tmp_path: Path) -> None:
    long = "7" * 5000
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"prompt": "2?", "completion": "4", "id": {long}}}\n')
    (row,) = file_rows(str(path), config="", revision="", split="")
    assert row.value == {"prompt": "2?", "completion": "4", "id": long}
