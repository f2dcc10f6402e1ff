"""Reads preference rows: a prompt, a chosen response, and one or several rejected ones.

    prompt, chosen, rejected            texts (rejected: one or a list), or all three as lists of messages
    chosen, rejected                    conversations with the same first messages, which are the prompt
    prompt_ids, chosen_ids, rejected_ids   token ids, as written by cft export format=dpo; nothing is appended

This is TRL's preference format, extended by several `rejected`. Each row of a file is one group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cft.data.problem_rows import BadRow, fields_found, read_field
from cft.data.row_contents import IGNORED, RowFields

if TYPE_CHECKING:
    from cft.data.given import GivenRow
    from cft.data.row_shapes import RowReader

CHOSEN, REJECTED = "chosen", "rejected"
_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


def preference_rows(reader: RowReader, value: Mapping[str, Any], *, place: str) -> list[GivenRow]:
    """The chosen row, then the rejected ones. Raises BadRow."""
    rows = [reader(one, place=place) for one in responses_of(value, reader.fields)]
    made = []
    for number, row in enumerate(rows):
        if number and row.problem_id != rows[0].problem_id:
            raise BadRow("responses of several prompts: chosen and rejected do not continue the same one")
        name = f"{rows[0].row_id}/{CHOSEN if not number else f'{REJECTED}{number}'}"
        made.append(replace(row, row_id=name, group=place, chosen=not number))
    return made


def responses_of(value: Mapping[str, Any], fields: RowFields) -> list[dict[str, Any]]:
    """The chosen response, then the rejected ones, as rows of shape text or tokens. Raises BadRow."""
    read = list(_ids(value) if {*_IDS} <= value.keys() else _responses(value, fields))
    if len(read) == 1:
        raise BadRow("nothing to compare: rejected is empty")
    if read[0] in read[1:]:
        raise BadRow("nothing to compare: a rejected response equals the chosen one")
    return read


def _responses(value: Mapping[str, Any], fields: RowFields) -> Iterator[dict[str, Any]]:
    """The responses as rows of shape text, with a prompt and a completion each."""
    if not {CHOSEN, REJECTED} <= value.keys():
        raise BadRow(f"no preference: expected {fields.prompt}, {CHOSEN} and {REJECTED} ({fields_found(value)})")
    chosen, rejected = value[CHOSEN], value[REJECTED]
    several = isinstance(rejected, list) and not (rejected and isinstance(rejected[0], Mapping))
    others = list(rejected) if several else [rejected]
    prompt = value.get(fields.prompt)
    if prompt is None and isinstance(chosen, list):
        prompt, (chosen, *others) = _shared([chosen, *others])
    elif isinstance(prompt, str) and isinstance(chosen, list):
        # A prompt beside whole conversations, which contain it as their first message, as in UltraFeedback.
        prompt, (chosen, *others) = _shared([chosen, *others])
    elif prompt is None:
        raise BadRow(
            f"no prompt: expected {fields.prompt} in addition to the texts {CHOSEN} and {REJECTED}; name it with "
            "data.prompt_field=..."
        )
    if isinstance(prompt, str):
        read_field(value, fields.prompt)
    for response in (chosen, *others):
        if type(response) is not type(prompt):
            raise BadRow(f"{CHOSEN} and {REJECTED} of several kinds: expected all texts, or all lists of messages")
        others_of = {CHOSEN, REJECTED, fields.messages, "input_ids", "segments", "spans"}
        rest = {key: inner for key, inner in value.items() if key not in others_of}
        yield {**rest, fields.prompt: prompt, fields.completion: response}


def _shared(conversations: Sequence[Any]) -> tuple[list[Any], list[list[Any]]]:
    """(messages that all conversations have in common at their start, the remaining messages of each)"""
    if not all(isinstance(one, list) and one for one in conversations):
        raise BadRow(f"{CHOSEN} and {REJECTED} of several kinds: expected all texts, or all lists of messages")
    shared = 0
    while all(len(one) > shared + 1 and one[shared] == conversations[0][shared] for one in conversations):
        shared += 1
    if not shared:
        raise BadRow(f"no prompt: the conversations {CHOSEN} and {REJECTED} do not start with the same message")
    return list(conversations[0][:shared]), [one[shared:] for one in conversations]


def _ids(value: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The responses as rows of shape tokens."""
    for name in _IDS:
        if not isinstance(value[name], list):
            raise BadRow(f"{name}: expected a list of token ids")
    prompt, chosen, rejected = (value[name] for name in _IDS)
    others = rejected if rejected and isinstance(rejected[0], list) else [rejected]
    for response in (chosen, *others):
        if not response:
            raise BadRow("no response: chosen_ids or rejected_ids is empty")
        rest = {key: inner for key, inner in value.items() if key not in _IDS}
        yield {**rest, "input_ids": [*prompt, *response], "labels": [IGNORED] * len(prompt) + list(response)}
