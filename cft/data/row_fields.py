"""Reads and checks fields of user-provided rows: messages, tools, segments with weights, columns of numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cft.data.problem_rows import BadRow, read_field


def messages_of(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"wrong type: {name} is {kind_of(value)}, expected a list of messages")
    made = []
    for number, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BadRow(
                f"no role: message {number} of {name} is {kind_of(message)}, expected an object with role and content"
            )
        content = message.get("content")
        if isinstance(content, list):
            content = _text_parts(content, number)
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise BadRow(f"wrong type: content of message {number} is {kind_of(content)}, expected text")
        made.append({key: inner for key, inner in message.items() if inner is not None} | {"content": content or ""})
    return made


def _text_parts(parts: list[Any], number: int) -> str:
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type", "text") == "text"]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise BadRow(f"not only text: message {number} has parts of other types")
    return "".join(map(str, texts))


def tools_of(value: Mapping[str, Any]) -> list[Any]:
    tools = value.get("tools") or []
    if isinstance(tools, str):  # tables store tools as JSON, since their keys differ
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise BadRow(f"tools: not JSON ({error})") from error
    if not isinstance(tools, list):
        raise BadRow(f"wrong type: tools is {kind_of(tools)}, expected a list")
    return tools


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
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    raise BadRow(f"bad weight: {name} is {kind_of(value)}, expected a finite number")


def integers_of(value: Mapping[str, Any], name: str) -> NDArray[np.int64]:
    column = value[name]
    found = np.asarray(column) if isinstance(column, list) and column else np.zeros((0, 0))
    if found.ndim != 1 or found.dtype.kind not in "iub":
        raise BadRow(f"wrong type: {name} is {kind_of(column)}, expected a list of integers")
    return found.astype(np.int64)


def floats_of(value: Mapping[str, Any], name: str) -> NDArray[np.float32]:
    column = value[name]
    found = np.asarray(column) if isinstance(column, list) and column else np.zeros((0, 0))
    if found.ndim != 1 or found.dtype.kind not in "iubf":
        raise BadRow(f"wrong type: {name} is {kind_of(column)}, expected a list of numbers")
    if not np.isfinite(found).all():
        raise BadRow(f"bad weight: {name}[{int(np.argmin(np.isfinite(found)))}] is infinite or NaN")
    return found.astype(np.float32)


def kind_of(value: Any) -> str:
    return "missing" if value is None else type(value).__name__
