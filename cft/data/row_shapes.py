"""Converts rows of several shapes to tokens that may carry loss, with weights.

    text       prompt, completion              rendered with `prompt=`, like a problem and its solution
    messages   messages (tools)                rendered with the chat template; `weight` of a message is a factor of the
                                               weights of its tokens
               prompt, completion as messages  the completion's turns may carry loss
    tokens     input_ids, labels and/or weights (attention_mask, completion_mask)      used unchanged
    spans      segments: [{text, weight | label}], with or without a prompt; or text, spans: [{start, end, weight | label}]
    preference chosen, rejected: rows to compare, each read as one of the above (`cft/data/preference_rows.py`)

Rows that cannot be read raise `BadRow` with the reason, and are counted by the reader of the file (`cft/data/rows.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cft.data.given import GivenRow
from cft.data.problem_rows import BadRow, content_hash, fields_found, read_field
from cft.data.row_fields import floats_of, integers_of, marked_of, messages_of, number_of, segments_of, tools_of
from cft.models.text import char_spans, hidden_ids
from cft.prompts.chat import Chat, Prompt, PromptError
from cft.prompts.completion import completion, plain_text
from cft.prompts.conversation import ASSISTANT, Conversation, WhichTurns, conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Shape = Literal["text", "messages", "tokens", "spans"]
SHAPES: tuple[Shape, ...] = ("text", "messages", "tokens", "spans")
IGNORED = -100  # the label of tokens without loss
_MASKS = ("attention_mask", "completion_mask", "assistant_masks")


def shape_of(
    value: Mapping[str, Any], *, shape: Shape | Literal["auto"], prompt: str, completion: str, messages: str
) -> Shape:
    """The shape of a row.

    Args:
        value: the row.
        shape: the configured shape; "auto" = by the row's fields.
        prompt: name of the prompt field.
        completion: name of the completion field.
        messages: name of the messages field.

    Raises:
        BadRow: the fields match no shape, or several.
    """
    if shape != "auto":
        return shape
    there = {
        "text": prompt in value and completion in value,
        "messages": messages in value,
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
        f"no known shape: expected {prompt} and {completion}, {messages}, input_ids, or segments ({fields_found(value)}); "
        "name the fields (data.*_field)"
    )


@dataclass(frozen=True, slots=True)
class RowReader:
    """Reads rows of one shape, or of any shape.

    Args:
        prompt: the prompt of the model.
        tokenizer: the tokenizer.
        shape: shape of the rows; "auto" = by the fields of each row.
        prompt_field: as in conf/data/rows.yaml.
        completion_field: as in conf/data/rows.yaml.
        messages_field: as in conf/data/rows.yaml.
        id_field: as in conf/data/rows.yaml.
        answer_field: as in conf/data/rows.yaml.
        roles: roles whose messages may carry loss.
        turns: which of their turns may carry loss.
    """

    prompt: Prompt
    tokenizer: PreTrainedTokenizerBase
    shape: Shape | Literal["auto"] = "auto"
    prompt_field: str = "prompt"
    completion_field: str = "completion"
    messages_field: str = "messages"
    id_field: str = ""
    answer_field: str = ""
    roles: tuple[str, ...] = (ASSISTANT,)
    turns: WhichTurns = "all"

    def shape_of(self, value: Mapping[str, Any]) -> Shape:
        """The shape of a row. Raises BadRow if its fields match no shape, or several."""
        return shape_of(
            value,
            shape=self.shape,
            prompt=self.prompt_field,
            completion=self.completion_field,
            messages=self.messages_field,
        )

    def __call__(self, value: Mapping[str, Any], *, place: str) -> GivenRow:
        """Read one row. Raises BadRow."""
        read = {"text": self._text, "messages": self._messages, "tokens": self._tokens, "spans": self._spans}
        try:
            row = read[self.shape_of(value)](value, place)
        except PromptError as error:
            raise BadRow(str(error)) from error
        row.allowed[0] = False  # the first token has no prediction
        if not row.allowed.any():
            raise BadRow("no loss: none of its tokens may carry loss")
        return row

    # ---- one for each shape

    def _text(self, value: Mapping[str, Any], place: str) -> GivenRow:
        question, answer = value.get(self.prompt_field), value.get(self.completion_field)
        if isinstance(question, list) and isinstance(answer, list):
            asked, said = messages_of(question, self.prompt_field), messages_of(answer, self.completion_field)
            return self._conversation(value, asked + said, place, first=len(asked))
        question, answer = read_field(value, self.prompt_field), read_field(value, self.completion_field)
        made = completion(self.prompt, self.tokenizer, question, answer)
        return self._row(value, place, made, [1.0], questions=(question,), asked=question)

    def _messages(self, value: Mapping[str, Any], place: str) -> GivenRow:
        return self._conversation(
            value, messages_of(value.get(self.messages_field), self.messages_field), place, first=0
        )

    def _conversation(
        self, value: Mapping[str, Any], messages: list[dict[str, Any]], place: str, *, first: int
    ) -> GivenRow:
        if not isinstance(self.prompt, Chat):
            raise BadRow("messages need a chat template: set prompt=chat")
        weights = [number_of(message.pop("weight", 1), f"weight of message {i}") for i, message in enumerate(messages)]
        if self.prompt.system and messages[0]["role"] != "system":
            messages, weights, first = [*self.prompt.asked("")[:1], *messages], [1.0, *weights], first + 1
        made = conversation(
            self.prompt, self.tokenizer, messages, tools=tools_of(value), roles=self.roles, which=self.turns
        )
        made = Conversation(made.encoded, tuple(turn for turn in made.turns if turn.message >= first))
        wanted = min((turn.message for turn in made.turns), default=len(messages))
        return self._row(
            value,
            place,
            made,
            [weights[turn.message] for turn in made.turns],
            questions=tuple(str(m.get("content") or "") for m in messages if m["role"] == "user"),
            asked=messages[:wanted],
        )

    def _tokens(self, value: Mapping[str, Any], place: str) -> GivenRow:
        ids = integers_of(value, "input_ids")
        given = {name: integers_of(value, name) for name in ("labels", *_MASKS) if name in value}
        floats = floats_of(value, "weights") if "weights" in value else None
        lengths = {"input_ids": len(ids), **{name: len(column) for name, column in given.items()}}
        lengths |= {"weights": len(floats)} if floats is not None else {}
        if len(set(lengths.values())) > 1:
            raise BadRow(f"columns of several lengths: {lengths}")
        if not ({"labels", "completion_mask", "assistant_masks"} & {*given}) and floats is None:
            raise BadRow(
                f"no loss is given: expected labels or weights in addition to input_ids ({fields_found(value)})"
            )
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self.tokenizer):
            raise BadRow(
                f"ids of another tokenizer: {ids.min()} to {ids.max()}, but this one has {len(self.tokenizer)} tokens"
            )
        real = slice(*_real(given.get("attention_mask"), len(ids)))
        labels = given.get("labels")
        if labels is not None:
            _require_at_their_tokens(ids, labels)
        weight = np.ones(len(ids), dtype=np.float32) if floats is None else floats
        masks = [given[name] for name in ("completion_mask", "assistant_masks") if name in given]
        allowed = np.all(masks, axis=0) if masks else weight != 0 if labels is None else labels != IGNORED
        if masks and labels is not None:  # ignored labels within a response get weight 0
            weight = np.where(labels == IGNORED, np.float32(0), weight)
        ids, weight, allowed = ids[real].astype(np.int32), weight[real], allowed[real].astype(bool)
        first = int(np.argmax(allowed)) if allowed.any() else len(ids)
        asked = self.tokenizer.decode(ids[:first], skip_special_tokens=True)
        text, span = char_spans(self.tokenizer, ids[allowed])
        whole = np.zeros((len(ids), 2), dtype=np.int32)
        whole[allowed] = span
        return self._made(value, place, ids, allowed, weight, text, whole, (str(asked),), ids[:first].tolist())

    def _spans(self, value: Mapping[str, Any], place: str) -> GivenRow:
        text, spans = segments_of(value["segments"]) if "segments" in value else marked_of(value)
        trained = [(start, end, weight) for start, end, weight in spans if weight and end > start]
        if not trained:
            raise BadRow("no loss: none of its segments or spans has a weight")
        if self.prompt_field in value:
            question = read_field(value, self.prompt_field)
            made = completion(self.prompt, self.tokenizer, question, text)
            turn = made.turns[0]
            at = made.encoded.text.find(text, int(made.encoded.span[turn.start, 0]))
            if at < 0:
                raise BadRow("text not as given: the chat template changes the text of the segments")
            ends, asked = spans[-1][1] == len(text) and bool(spans[-1][2]), question
        else:
            start = min(start for start, _, _ in trained)
            ends, at, asked = max(end for _, end, _ in trained) == len(text), 0, text[:start]
            made = plain_text(self.prompt, self.tokenizer, text, start=start, ends=ends)
            turn = made.turns[0]
        encoded = made.encoded
        weight = np.zeros(len(encoded.ids), dtype=np.float32)
        for start, end, of_span in trained:
            first, last = encoded.tokens(at + start, at + end)
            part = weight[first:last]  # a token in two spans gets the larger weight
            part[:] = np.where(np.abs(part) > abs(of_span), part, np.float32(of_span))
        last = turn.end
        if ends and weight[last - 1] == 0:
            weight[last - 1] = trained[-1][2]
        allowed = weight != 0
        allowed[: turn.start] = False
        return self._made(value, place, encoded.ids, allowed, weight, encoded.text, encoded.span, (asked,), asked)

    # ---- shared by all shapes

    def _row(
        self,
        value: Mapping[str, Any],
        place: str,
        made: Conversation,
        weights: Sequence[float],
        *,
        questions: tuple[str, ...],
        asked: Any,
    ) -> GivenRow:
        """A row from the turns of a conversation with a weight for each; a turn with weight 0 carries no loss."""
        encoded = made.encoded
        allowed = np.zeros(len(encoded.ids), dtype=bool)
        weight = np.ones(len(encoded.ids), dtype=np.float32)
        for turn, of_turn in zip(made.turns, weights, strict=True):
            allowed[turn.start : turn.end] = of_turn != 0
            weight[turn.start : turn.end] = of_turn
        return self._made(value, place, encoded.ids, allowed, weight, encoded.text, encoded.span, questions, asked)

    def _made(
        self,
        value: Mapping[str, Any],
        place: str,
        ids: NDArray[np.int32],
        allowed: NDArray[np.bool_],
        weight: NDArray[np.float32],
        text: str,
        span: NDArray[np.int32],
        questions: tuple[str, ...],
        asked: Any,
    ) -> GivenRow:
        """Make the row. asked: the content before the first token that may carry loss, as JSON; determines `problem_id`."""
        hidden = np.isin(ids, sorted(hidden_ids(self.tokenizer)))
        span = np.where(hidden[:, None], span[:, :1], span).astype(np.int32)
        if self.id_field:
            row_id = problem_id = read_field(value, self.id_field, numbers=True)
        else:
            row_id, problem_id = _digest(ids, allowed, weight), content_hash(json.dumps(asked, ensure_ascii=False))
        answer = read_field(value, self.answer_field, numbers=True) if self.answer_field else ""
        last = np.flatnonzero(allowed)[-1:]
        finish = "stop" if len(last) and hidden[last[0]] else "length"
        return GivenRow(row_id, problem_id, place, questions, answer, ids, allowed, weight, text, span, finish)


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


def _digest(*columns: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for column in columns:
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:20]
