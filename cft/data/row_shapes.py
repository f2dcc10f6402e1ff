"""Converts the contents of user-provided rows (`cft/data/row_contents.py`) to tokens that may carry loss, with weights.

    text       rendered with `prompt=`, like a problem and its solution
    messages   rendered with the chat template; `weight` of a message is a factor of the weights of its tokens
    tokens     used unchanged
    spans      the response of a prompt, or a text without a template
    preference chosen, rejected: rows to compare, each read as one of the above (`cft/data/preference_rows.py`)

Rows that cannot be read raise `BadRow` with the reason, and are counted by the reader of the file (`cft/data/rows.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cft.data.given import GivenRow
from cft.data.problem_rows import BadRow, content_hash, read_field
from cft.data.row_contents import NO_CHAT, Columns, Marked, Pair, RowFields, Talk
from cft.models.text import char_spans, hidden_ids
from cft.prompts.chat import Chat, Prompt, PromptError
from cft.prompts.completion import completion, plain_text
from cft.prompts.conversation import Conversation, WhichTurns, conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class RowReader:
    """Reads rows of one shape, or of any shape.

    Args:
        prompt: the prompt of the model.
        tokenizer: the tokenizer.
        fields: names of the fields, and the roles whose messages may carry loss.
        turns: which of their turns may carry loss.
    """

    prompt: Prompt
    tokenizer: PreTrainedTokenizerBase
    fields: RowFields = field(default_factory=RowFields)
    turns: WhichTurns = "all"

    def __call__(self, value: Mapping[str, Any], *, place: str) -> GivenRow:
        """Read one row. Raises BadRow."""
        contents = self.fields.read(value)
        try:
            match contents:
                case Pair(question, answer):
                    made = completion(self.prompt, self.tokenizer, question, answer)
                    row = self._row(value, place, made, [1.0], questions=(question,), asked=question)
                case Talk():
                    row = self._talk(value, contents, place)
                case Columns():
                    row = self._columns(value, contents, place)
                case Marked():
                    row = self._marked(value, contents, place)
        except PromptError as error:
            raise BadRow(str(error)) from error
        row.allowed[0] = False  # the first token has no prediction
        if not row.allowed.any():
            raise BadRow("no loss: none of its tokens may carry loss")
        return row

    # ---- one for each kind of contents

    def _talk(self, value: Mapping[str, Any], talk: Talk, place: str) -> GivenRow:
        if not isinstance(self.prompt, Chat):
            raise BadRow(NO_CHAT)
        messages, weights, first = talk.messages, talk.weights, talk.first
        if self.prompt.system and messages[0]["role"] != "system":
            messages, weights, first = [*self.prompt.asked("")[:1], *messages], [1.0, *weights], first + 1
        made = conversation(
            self.prompt, self.tokenizer, messages, tools=talk.tools, roles=self.fields.roles, which=self.turns
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

    def _columns(self, value: Mapping[str, Any], columns: Columns, place: str) -> GivenRow:
        allowed, weight = columns.allowed, columns.weight
        if len(columns.ids) and not 0 <= columns.ids.min() <= columns.ids.max() < len(self.tokenizer):
            raise BadRow(
                f"ids of another tokenizer: {columns.ids.min()} to {columns.ids.max()}, but this one has "
                f"{len(self.tokenizer)} tokens"
            )
        ids = columns.ids.astype(np.int32)
        first = int(np.argmax(allowed)) if allowed.any() else len(ids)
        asked = self.tokenizer.decode(ids[:first], skip_special_tokens=True)
        text, span = char_spans(self.tokenizer, ids[allowed])
        whole = np.zeros((len(ids), 2), dtype=np.int32)
        whole[allowed] = span
        return self._made(value, place, ids, allowed, weight, text, whole, (str(asked),), ids[:first].tolist())

    def _marked(self, value: Mapping[str, Any], marked: Marked, place: str) -> GivenRow:
        text, trained = marked.text, marked.trained
        if marked.prompt is not None:
            made = completion(self.prompt, self.tokenizer, marked.prompt, text)
            turn = made.turns[0]
            at = made.encoded.text.find(text, int(made.encoded.span[turn.start, 0]))
            if at < 0:
                raise BadRow("text not as given: the chat template changes the text of the segments")
            ends, asked = marked.spans[-1][1] == len(text) and bool(marked.spans[-1][2]), marked.prompt
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
        if self.fields.id:
            row_id = problem_id = read_field(value, self.fields.id, numbers=True)
        else:
            row_id, problem_id = _digest(ids, allowed, weight), content_hash(json.dumps(asked, ensure_ascii=False))
        answer = read_field(value, self.fields.answer, numbers=True) if self.fields.answer else ""
        last = np.flatnonzero(allowed)[-1:]
        finish = "stop" if len(last) and hidden[last[0]] else "length"
        return GivenRow(row_id, problem_id, place, questions, answer, ids, allowed, weight, text, span, finish)


def _digest(*columns: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for column in columns:
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:20]
