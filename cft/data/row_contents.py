"""What a user-provided row holds, read without a tokenizer, so that faults of rows are found before anything heavy loads.

    text       prompt, completion
    messages   messages (tools), or prompt and completion as messages
    tokens     input_ids, labels and/or weights (attention_mask, completion_mask)
    spans      segments: [{text, weight | label}], with or without a prompt; or text, spans: [{start, end, weight | label}]

`cft/data/row_shapes.py` encodes the contents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cft.data.problem_rows import BadRow, fields_found, has_field, read_field, template_parts
from cft.data.row_fields import (
    floats_of,
    integers_of,
    kind_of,
    marked_of,
    messages_of,
    number_of,
    segments_of,
    tools_of,
)
from cft.types import ASSISTANT

Shape = Literal["text", "messages", "tokens", "spans"]
SHAPES: tuple[Shape, ...] = ("text", "messages", "tokens", "spans")
REMEDY = "Repair them, set data.shape or the field names (data.*_field), or raise the limit"
NO_CHAT = "messages need a chat template: set prompt=chat"
IGNORED = -100  # the label of tokens without loss
_MASKS = ("attention_mask", "completion_mask", "assistant_masks")
_UNREAD = (  # fields that would change tokens or weights, and are read in some shapes only, or by other libraries
    "weight",
    "weights",
    "labels",
    "loss_mask",
    "loss_weights",
    "sample_weight",
    "chat_template_kwargs",
    "system",
    "history",
    "tools",
)
_CONVERSATIONS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue")
_QUESTIONS = ("prompt", "instruction", "question", "query", "problem", "input")
_ANSWERS = ("completion", "output", "response", "solution", "answer")


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation. messages: without their weights. first: index of the first message that may carry loss."""

    messages: list[dict[str, Any]]
    weights: list[float]
    tools: list[Any]
    first: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and its completion."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Columns:
    """Token ids without padding. allowed: [L] bool, tokens that may carry loss. weight: [L]."""

    ids: NDArray[np.int64]
    allowed: NDArray[np.bool_]
    weight: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Marked:
    """A text with [(start, end, weight)]; those with a weight are in `trained`. prompt: None = a text without a template."""

    prompt: str | None
    text: str
    spans: list[tuple[int, int, float]]
    trained: list[tuple[int, int, float]] = field(default_factory=list)


Contents = Talk | Pair | Columns | Marked


@dataclass(frozen=True, slots=True)
class RowFields:
    """The names of the fields, as in conf/data/rows.yaml, and the roles whose messages may carry loss."""

    shape: Shape | Literal["auto"] = "auto"
    prompt: str = "prompt"
    completion: str = "completion"
    messages: str = "messages"
    id: str = ""
    answer: str = ""
    roles: tuple[str, ...] = (ASSISTANT,)

    def shape_of(self, value: Mapping[str, Any]) -> Shape:
        """The shape of a row: the configured one, or by its fields. Raises BadRow if these match no shape, or several."""
        if self.shape != "auto":
            return self.shape
        there = {
            "text": has_field(value, self.prompt) and has_field(value, self.completion),
            "messages": self.messages in value,
            "tokens": "input_ids" in value,
            "spans": "segments" in value or ("text" in value and "spans" in value),
        }
        found: list[Shape] = [one for one in SHAPES if there[one]]
        if len(found) == 1:
            return found[0]
        if found:
            raise BadRow(f"several shapes: its fields match {' and '.join(found)}; choose one with data.shape=...")
        if {"chosen", "rejected"} <= value.keys():
            raise BadRow("a preference: chosen and rejected responses are for a loss that compares them (loss=dpo)")
        raise BadRow(
            f"no known shape: expected {self.prompt} and {self.completion}, {self.messages}, input_ids, or segments "
            f"({fields_found(value)}); {self._names(value)}"
        )

    def read(self, value: Mapping[str, Any]) -> Contents:
        """The contents of a row. Raises BadRow."""
        shape = self.shape_of(value)
        if shape == "text":
            return self._pair(value)
        if shape == "messages":
            return self._talk(value, messages_of(value.get(self.messages), self.messages), first=0)
        return _columns(value) if shape == "tokens" else self._marked(value)

    def check(self, value: Mapping[str, Any], *, chat: bool) -> None:
        """Raises BadRow for what can be found without a tokenizer. chat: whether prompts are made with a chat template."""
        if isinstance(self.read(value), Talk) and not chat:
            raise BadRow(NO_CHAT)
        for name in (self.id, self.answer):
            if name:
                read_field(value, name, numbers=True)

    def unread(self, value: Mapping[str, Any]) -> Iterator[str]:
        """Fields that name weights or parts of a prompt and are not read in a row of this shape."""
        shape = self.shape_of(value)
        read = {inner for name in (self.prompt, self.completion) for _, inner in template_parts(name)}
        read |= {"tokens": {"labels", "weights"}, "messages": {"tools"}}.get(shape, set())
        if shape == "text" and isinstance(value.get(self.prompt), list):
            read.add("tools")
        return (name for name in _UNREAD if name not in read and value.get(name) not in (None, "", [], {}))

    def _pair(self, value: Mapping[str, Any]) -> Pair | Talk:
        asked, said = value.get(self.prompt), value.get(self.completion)
        if isinstance(asked, list) and isinstance(said, list):
            before = messages_of(asked, self.prompt)
            return self._talk(value, before + messages_of(said, self.completion), first=len(before))
        if isinstance(asked, list) != isinstance(said, list):
            raise BadRow(
                f"wrong type: {self.prompt} is {kind_of(asked)} and {self.completion} is {kind_of(said)}, expected two texts, "
                "or two lists of messages"
            )
        return Pair(read_field(value, self.prompt), read_field(value, self.completion))

    def _talk(self, value: Mapping[str, Any], messages: list[dict[str, Any]], *, first: int) -> Talk:
        weights = [number_of(message.pop("weight", 1), f"weight of message {i}") for i, message in enumerate(messages)]
        roles = [str(message["role"]) for message in messages]
        if not {*roles[first:]} & {*self.roles}:
            raise BadRow(
                f"no turn of {', '.join(sorted(self.roles))}: found the roles {', '.join(dict.fromkeys(roles[first:]))}"
            )
        return Talk(messages, weights, tools_of(value), first)

    def _marked(self, value: Mapping[str, Any]) -> Marked:
        text, spans = segments_of(value["segments"]) if "segments" in value else marked_of(value)
        trained = [(start, end, weight) for start, end, weight in spans if weight and end > start]
        if not trained:
            raise BadRow("no loss: none of its segments or spans has a weight")
        prompt = read_field(value, self.prompt) if self.prompt in value else None
        return Marked(prompt, text, spans, trained)

    def _names(self, value: Mapping[str, Any]) -> str:
        """The settings that would read the row, guessed from its fields."""
        for name in _CONVERSATIONS:
            if isinstance(value.get(name), list):
                return f"set data.messages_field={name}"
        asked = next((name for name in _QUESTIONS if isinstance(value.get(name), str)), "")
        said = next((name for name in _ANSWERS if isinstance(value.get(name), str)), "")
        if not (asked and said):
            return "name the fields (data.*_field)"
        prompt = f"data.prompt_field={asked}"
        if asked == "instruction" and "input" in value:
            prompt = "\"data.prompt_field='{instruction} {input}'\""
        return f"set {prompt} data.completion_field={said}"


def unread_notes(counts: Mapping[str, int]) -> list[str]:
    """What to print about fields that were not read. counts: number of rows by field."""
    return [
        f"Note: {count} rows have a field {name}, which is not read in rows of this shape"
        for name, count in sorted(counts.items())
    ]


def _columns(value: Mapping[str, Any]) -> Columns:
    ids = integers_of(value, "input_ids")
    given = {name: integers_of(value, name) for name in ("labels", *_MASKS) if name in value}
    floats = floats_of(value, "weights") if "weights" in value else None
    lengths = {"input_ids": len(ids), **{name: len(column) for name, column in given.items()}}
    lengths |= {"weights": len(floats)} if floats is not None else {}
    if len(set(lengths.values())) > 1:
        raise BadRow(f"columns of several lengths: {lengths}")
    if not ({"labels", "completion_mask", "assistant_masks"} & {*given}) and floats is None:
        raise BadRow(f"no loss is given: expected labels or weights in addition to input_ids ({fields_found(value)})")
    real = slice(*_real(given.get("attention_mask"), len(ids)))
    labels = given.get("labels")
    if labels is not None:
        _require_at_their_tokens(ids, labels)
    weight = np.ones(len(ids), dtype=np.float32) if floats is None else floats
    masks = [given[name] for name in ("completion_mask", "assistant_masks") if name in given]
    allowed = np.all(masks, axis=0) if masks else weight != 0 if labels is None else labels != IGNORED
    if masks and labels is not None:  # ignored labels within a response get weight 0
        weight = np.where(labels == IGNORED, np.float32(0), weight)
    return Columns(ids[real], allowed[real].astype(bool), weight[real])


def _real(attention_mask: NDArray[np.int64] | None, length: int) -> tuple[int, int]:
    """The range of a row's tokens without padding."""
    if attention_mask is None:
        return 0, length
    there = np.flatnonzero(attention_mask)
    start, end = (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 0)
    if end - start != len(there):
        raise BadRow("attention_mask with a gap: expected one text per row, not several packed ones")
    return start, end


def _require_at_their_tokens(ids: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
    given = labels != IGNORED
    if (labels[given] == ids[given]).all():
        return
    shifted = given[:-1]
    if (labels[:-1][shifted] == ids[1:][shifted]).all():
        raise BadRow(
            "shifted labels: each label is the next token; expected each label at the position of its own token"
        )
    at = int(np.flatnonzero(given & (labels != ids))[0])
    raise BadRow(
        f"labels differ from ids: labels[{at}] is {labels[at]}, input_ids[{at}] is {ids[at]}; expected equal ids or {IGNORED}"
    )
