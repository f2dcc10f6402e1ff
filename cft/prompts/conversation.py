"""Converts conversations to token ids and locates the tokens of each turn, for several turns, tools, and any chat template.

The conversation is rendered and encoded once, as a whole. A turn is located by the template's `{% generation %}` marks or, if
there are none, by rendering the conversation up to the turn. This must be a prefix of the whole text; templates that render
earlier turns differently once others follow (without their thinking, as Qwen3's does) are detected and refused. The prompt of a
turn must also be a prefix in token ids, since these ids are what the model gets when it answers.

A turn includes the token with which the template ends it. Messages never produce special tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cft.models.text import decode, hidden_ids
from cft.prompts.chat import Chat, Prompt, PromptError, TextError, compared, control_tokens, special_tokens
from cft.prompts.spelling import Encoded, broken, encoded_frame, without_breaks
from cft.types import ASSISTANT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WhichTurns = Literal["all", "last"]
REASONING = ("reasoning_content", "thinking", "reasoning")  # keys of a message that hold its thinking


@dataclass(frozen=True, slots=True)
class Turn:
    """The tokens [start, end) of one message: its content and the token that ends it, without the header.

    Args:
        message: index of the message, from 0.
        role: role of the message.
        start: index of the first token.
        end: index after the last token.
    """

    message: int
    role: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """All tokens of a conversation, and the requested turns in order."""

    encoded: Encoded
    turns: tuple[Turn, ...]


def conversation(
    prompt: Chat,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    roles: Collection[str] = (ASSISTANT,),
    which: WhichTurns = "all",
) -> Conversation:
    """Ids of a conversation with the turns of the given roles.

    Args:
        prompt: the chat prompt.
        tokenizer: the tokenizer with the chat template.
        messages: messages in the form of chat templates: role, content, and other keys that the template uses.
        tools: JSON schemas of tools, in the form of chat templates.
        roles: the roles whose turns are located.
        which: all of these turns, or only the last one.

    Raises:
        TextError: the conversation does not suit this template or tokenizer; the message is the reason.
    """
    _require_read(tokenizer, messages, tools)
    safe = _with_broken_specials(prompt, tokenizer, messages)
    safe_tools = broken(list(tools), special_tokens(tokenizer))
    wanted = [number for number, message in enumerate(messages) if message.get("role") in roles]
    wanted = wanted[-1:] if which == "last" else wanted
    if not wanted:
        raise TextError(f"no turn of {', '.join(sorted(roles))}")

    def rendered(count: int, *, answer: bool) -> tuple[str, list[tuple[int, int]]]:
        try:
            return prompt.rendered(tokenizer, safe[:count], tools=safe_tools, answer=answer)
        except TextError:
            raise
        except PromptError as error:
            raise TextError(f"the chat template refuses it: {error}") from error

    whole, marked = rendered(len(safe), answer=False)
    written = [number for number, message in enumerate(messages) if message.get("role") == ASSISTANT]
    marks = dict(zip(written, marked, strict=True)) if marked and len(marked) == len(written) else {}
    encoded = _one_bos(encoded_frame(tokenizer, whole), tokenizer)
    turns = []
    for number in wanted:
        role = str(messages[number]["role"])
        if number in marks:
            start, end = marks[number]
        else:
            start, end = _between_prefixes(
                whole,
                lambda count, answer: rendered(count, answer=answer)[0],
                number,
                messages=safe,
                special=special_tokens(tokenizer),
            )
        turns.append(_turn(encoded, tokenizer, whole, number, role, start, end, marked=number in marks))
    return _ended(prompt, tokenizer, Conversation(encoded, tuple(turns)), ends_with=len(messages) - 1)


def prompt_ids(
    prompt: Chat,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """Ids of a conversation, ending with the header of the assistant's next turn. Raises TextError."""
    _require_read(tokenizer, messages, tools)
    safe = _with_broken_specials(prompt, tokenizer, messages)
    safe_tools = broken(list(tools), special_tokens(tokenizer))
    try:
        text, _ = prompt.rendered(tokenizer, safe, tools=safe_tools, answer=True)
    except PromptError as error:
        raise TextError(f"the chat template refuses it: {error}") from error
    return _one_bos(encoded_frame(tokenizer, text), tokenizer).ids.tolist()


def _between_prefixes(
    whole: str, rendered: Any, number: int, *, messages: list[dict[str, Any]], special: Collection[str]
) -> tuple[int, int]:
    """The character range of a message in a text without marks: from the end of the preceding conversation to its own end."""
    role = messages[number]["role"]
    before = rendered(number, role == ASSISTANT) if number or role == ASSISTANT else ""
    after = whole if number == len(messages) - 1 else rendered(number + 1, False)
    for part, what in ((before, "before"), (after, "up to")):
        if not whole.startswith(part):
            raise TextError(
                f"the chat template writes earlier turns differently once later ones follow: the conversation {what} message "
                f"{number} ({_difference(part, whole)}), so the model's prompt at this turn is not a prefix of the whole; use "
                "only the last turn (data.turns=last), a template with {% generation %} marks, or set prompt.template_kwargs"
            )
    if role == ASSISTANT:
        return len(before), len(after)
    content = messages[number].get("content")
    text = content.strip() if isinstance(content, str) else ""
    at = whole.find(text, len(before), len(after)) if text else -1
    if at < 0:
        raise TextError(f"the chat template changes the text of a message: message {number} ({role})")
    tail = whole[at + len(text) : len(after)]
    closed = any(token in tail for token in special)
    return at, len(after) if closed else at + len(text)


def _turn(
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    whole: str,
    number: int,
    role: str,
    start: int,
    end: int,
    *,
    marked: bool,
) -> Turn:
    """The turn in characters [start, end) of the whole text (with BREAKs); checks that its prompt is a prefix in ids."""
    prefix = whole[:start]
    first, last = encoded.tokens(len(without_breaks(prefix)), len(without_breaks(whole[:end])))
    if first < len(encoded.ids) and prefix:
        alone = _one_bos(encoded_frame(tokenizer, prefix), tokenizer).ids
        if alone.tolist() != encoded.ids[:first].tolist():
            raise TextError(
                f"the tokenizer merges a message with the text before it: message {number}, {prefix[-12:]!r} and what follows; "
                "begin or end the texts at a token boundary"
            )
    ends = encoded.special
    if marked:  # the end token may follow the mark; without marks it is within the range
        last += bool(last < len(ends) and ends[last] and last > first and not ends[last - 1])
    elif closing := np.flatnonzero(ends[first:last]).tolist():
        tail = without_breaks(whole[:end])[encoded.span[first + closing[-1], 1] :]
        last = first + closing[-1] + 1 if not tail.strip() else last
    if first == last:
        raise TextError(f"the chat template omits a turn: message {number} ({role})")
    require_spelt(tokenizer, encoded, first, last)
    return Turn(number, role, first, last)


def require_spelt(tokenizer: PreTrainedTokenizerBase, encoded: Encoded, first: int, last: int) -> None:
    """Raises TextError if the text of a turn does not survive encoding and decoding."""
    hidden = hidden_ids(tokenizer)
    spans = zip(encoded.ids[first:last].tolist(), encoded.span[first:last].tolist(), strict=True)
    at, text = encoded.span[first, 0] if first < last else 0, ""
    for token, (start, end) in spans:
        text += encoded.text[max(at, start) : end] if token not in hidden else ""
        at = max(at, end)
    if compared(decode(tokenizer, encoded.ids[first:last])) != compared(text):
        raise TextError("the tokenizer cannot spell this text")


def _ended(prompt: Chat, tokenizer: PreTrainedTokenizerBase, made: Conversation, *, ends_with: int) -> Conversation:
    """Append the end token if the template writes none after the assistant's last turn, so that the model learns to end."""
    turn, encoded = made.turns[-1], made.encoded
    if turn.message != ends_with or turn.role != ASSISTANT or int(encoded.ids[turn.end - 1]) in hidden_ids(tokenizer):
        return made
    end_id = prompt.end_id(tokenizer)
    if end_id is None or int(encoded.ids[turn.end - 1]) == end_id:
        return made
    cut = encoded.span[turn.end - 1, 1]
    ended = Encoded(
        encoded.text[:cut],
        np.append(encoded.ids[: turn.end], np.int32(end_id)),
        np.concatenate([encoded.span[: turn.end], np.array([[cut, cut]], dtype=np.int32)]),
        np.append(encoded.special[: turn.end], np.True_),
    )
    return Conversation(ended, (*made.turns[:-1], replace(turn, end=turn.end + 1)))


def _with_broken_specials(
    prompt: Chat, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The messages with BREAK in spellings of special tokens; in the assistant's turns, only of control tokens."""
    special = special_tokens(tokenizer)
    controls = assistant_controls(prompt, tokenizer)
    made = []
    for message in messages:
        spelt = controls if message.get("role") == ASSISTANT else special
        safe = {key: broken(value, spelt) for key, value in message.items() if value is not None}
        thinking = next((safe[name] for name in REASONING if name in safe), None)
        if thinking is not None:  # as in transformers, since templates use different keys
            safe = {"thinking": thinking, **safe, "reasoning_content": thinking}
        made.append(safe)
    return made


def assistant_controls(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Texts of the tokens that no message may contain, not even the assistant's."""
    return _controls(prompt, tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=4)
def _controls(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, template: str) -> frozenset[str]:
    """template: only part of the cache key, since the tokenizer's template may be replaced."""
    del template
    end_id = prompt.end_id(tokenizer)
    ends = () if end_id is None else (end_id,)
    hidden = {text for text, token in special_tokens(tokenizer).items() if token in hidden_ids(tokenizer)}
    return frozenset({*control_tokens(tokenizer, ends=ends)} | hidden)


def _require_read(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> None:
    """Raises TextError for parts of a conversation that the template does not use and would silently omit."""
    source = tokenizer.chat_template
    template = source if isinstance(source, str) else "\n".join((source or {}).values())
    used = {key for message in messages for key in message if message[key] is not None}
    given = {"tool_calls": "tool_calls" in used, "tools": bool(tools), REASONING[0]: bool(used & {*REASONING})}
    for name, there in given.items():
        if there and not any(word in template for word in (REASONING if name == REASONING[0] else (name,))):
            raise TextError(f"it has {name}, which the chat template of {tokenizer.name_or_path} does not read")


def _one_bos(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Drop a duplicate BOS at the front, if both the template and the text begin with one."""
    ids = encoded.ids
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        return Encoded(encoded.text, ids[1:], encoded.span[1:], encoded.special[1:])
    return encoded


def _difference(part: str, whole: str) -> str:
    """A few characters of two texts at their first difference."""
    at = next((i for i, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), min(len(part), len(whole)))
    shown = [repr(without_breaks(text[max(0, at - 8) : at + 24])) for text in (part, whole)]
    return f"{shown[0]}, then {shown[1]}"
