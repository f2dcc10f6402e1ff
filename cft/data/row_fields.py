"""Reads and checks fields of user-provided rows: messages, tools, segments with weights, columns of numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cft.data.problem_rows import BadRow, read_field
from cft.types import ASSISTANT

_LARGEST = float(np.finfo(np.float32).max)


_SENDERS = {"human": "user", "gpt": ASSISTANT, "observation": "tool"}  # ShareGPT's names of roles
_OTHER_WEIGHTS = ("loss", "loss_scale", "loss_weight", "train", "train_detail", "training")
_WRITTEN = ("tool_calls", "reasoning_content", "thinking", "reasoning")  # what a turn may have in place of content


def messages_of(value: Any, name: str) -> list[dict[str, Any]]:
    """Messages with role and content, also from ShareGPT's `from` and `value`. Raises BadRow."""
    if not isinstance(value, list) or not value:
        raise BadRow(f"wrong type: {name} is {kind_of(value)}, expected a list of messages")
    return [_message(message, number, name) for number, message in enumerate(value)]


def _message(message: Any, number: int, name: str) -> dict[str, Any]:
    if isinstance(message, Mapping) and isinstance(message.get("from"), str) and "role" not in message:
        sender = message["from"]
        if sender == "function_call":
            raise BadRow(
                f"a tool call as text: message {number} is from function_call; expected tool_calls of the assistant"
            )
        rest = {key: inner for key, inner in message.items() if key not in ("from", "value")}
        message = {"role": _SENDERS.get(sender, sender), "content": message.get("value"), **rest}
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        found = f"has {', '.join(map(str, message))}" if isinstance(message, Mapping) else f"is {kind_of(message)}"
        raise BadRow(f"no role: message {number} of {name} {found}, expected an object with role and content")
    if other := [key for key in _OTHER_WEIGHTS if message.get(key) is not None]:
        raise BadRow(
            f"another name of a weight: message {number} has {other[0]}, which is not read; expected weight, a factor of the "
            "weights of its tokens (0 = no loss)"
        )
    content = message.get("content")
    if isinstance(content, list):
        content = _text_parts(content, number)
    made = {key: inner for key, inner in message.items() if inner is not None}
    written = [key for key in _WRITTEN if made.get(key)]
    if not isinstance(content, str) and not (content is None and written):
        raise BadRow(f"wrong type: content of message {number} is {kind_of(content)}, expected text")
    if message["role"] == ASSISTANT and not written and not content and message.get("weight") != 0:
        raise BadRow(
            f"empty field: content of message {number}; to keep an empty turn without loss, give it the weight 0"
        )
    if "tool_calls" in made:
        made["tool_calls"] = _calls(made["tool_calls"], number)
    _require_unicode(made, f"message {number}")
    return made | {"content": content or ""}


def _calls(calls: Any, number: int) -> list[Any]:
    """Tool calls with their arguments as objects, which chat templates expect; APIs give them as JSON."""
    if not isinstance(calls, list):
        raise BadRow(f"wrong type: tool_calls of message {number} is {kind_of(calls)}, expected a list")
    made = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise BadRow(f"wrong type: a tool call of message {number} is {kind_of(call)}, expected an object")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            function = {**function, "arguments": _parsed(arguments, f"arguments of a tool call of message {number}")}
        made.append({**call, "function": function} if "function" in call else function)
    return made


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRow(f"malformed JSON: {name}: {error}") from error


def _text_parts(parts: list[Any], number: int) -> str:
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type", "text") == "text"]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise BadRow(f"not only text: message {number} has parts of other types")
    return "".join(map(str, texts))


def tools_of(value: Mapping[str, Any]) -> list[Any]:
    """The row's tools; tables store them as JSON, since their keys differ. Raises BadRow."""
    tools = value.get("tools") or []
    if isinstance(tools, str):
        tools = _parsed(tools, "tools") or []
    if not isinstance(tools, list):
        raise BadRow(f"wrong type: tools is {kind_of(tools)}, expected a list")
    _require_unicode(tools, "tools")
    return [_parsed(tool, "tools") if isinstance(tool, str) else tool for tool in tools]


def _require_unicode(value: Any, name: str) -> None:
    """Raises BadRow for half of a surrogate pair in a JSON value, which no tokenizer can encode."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise BadRow(f"lone surrogate: {name} is not valid Unicode") from None


def segments_of(value: Any) -> tuple[str, list[tuple[int, int, float]]]:
    """(text, [(start, end, weight)])"""
    if not isinstance(value, list) or not value:
        raise BadRow(
            f"wrong type: segments is {kind_of(value)}, expected a list of objects with text and weight or label"
        )
    text, spans = "", []
    for number, segment in enumerate(value):
        if not isinstance(segment, Mapping) or not isinstance(segment.get("text"), str):
            raise BadRow(
                f"no text: segment {number} is {kind_of(segment)}, expected an object with text and weight or label"
            )
        spans.append((len(text), len(text) + len(segment["text"]), _weight(segment, f"segment {number}")))
        text += segment["text"]
    _require_unicode(text, "segments")
    return text, spans


def marked_of(value: Mapping[str, Any]) -> tuple[str, list[tuple[int, int, float]]]:
    text, spans = read_field(value, "text"), []
    if not isinstance(value["spans"], list):
        raise BadRow(
            f"wrong type: spans is {kind_of(value['spans'])}, expected a list of objects with start, end and weight"
        )
    for number, span in enumerate(value["spans"]):
        start, end = (span.get("start"), span.get("end")) if isinstance(span, Mapping) else (None, None)
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
            raise BadRow(f"no such span: span {number} is from {start} to {end} of a text of {len(text)} characters")
        spans.append((start, end, _weight(span, f"span {number}")))
    return text, spans


def _weight(part: Mapping[str, Any], name: str) -> float:
    if "weight" in part:
        return number_of(part["weight"], f"weight of {name}")
    if isinstance(part.get("label"), bool):
        return float(part["label"])
    raise BadRow(f"no weight: {name} has neither weight nor a label that is true or false")


def number_of(value: Any, name: str) -> float:
    if isinstance(value, bool | int | float) and abs(value) <= _LARGEST:
        return float(value)
    raise BadRow(f"bad weight: {name} is {kind_of(value)}, expected a finite number of at most {_LARGEST:.2g}")


def integers_of(value: Mapping[str, Any], name: str) -> NDArray[np.int64]:
    return _column(value[name], name, kinds="iub", expected="integers").astype(np.int64)


def floats_of(value: Mapping[str, Any], name: str) -> NDArray[np.float32]:
    found = _column(value[name], name, kinds="iubf", expected="numbers")
    fits = np.abs(found.astype(np.float64)) <= _LARGEST
    if not fits.all():
        at = int(np.argmin(fits))
        raise BadRow(f"bad weight: {name}[{at}] is {found[at]}, expected a finite number of at most {_LARGEST:.2g}")
    return found.astype(np.float32)


def _column(column: Any, name: str, *, kinds: str, expected: str) -> NDArray[Any]:
    """A list of numbers as an array. kinds: of numpy's data types."""
    if not isinstance(column, list) or not column:
        raise BadRow(f"wrong type: {name} is {kind_of(column)}, expected a list of {expected}")
    try:
        found = np.asarray(column)
    except (ValueError, OverflowError):  # lists of several lengths
        found = np.zeros((0, 0))
    if found.ndim == 1 and found.dtype.kind in kinds:
        return found
    numbers = (int, float) if "f" in kinds else int
    at = next((i for i, one in enumerate(column) if not isinstance(one, numbers)), 0)
    raise BadRow(f"wrong type: {name}[{at}] is {kind_of(column[at])}, expected a list of {expected}")


def kind_of(value: Any) -> str:
    if value is None or value == []:
        return "missing" if value is None else "an empty list"
    return type(value).__name__
