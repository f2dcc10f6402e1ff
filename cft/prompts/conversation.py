"""Conversations -> token ids with the tokens of every turn: several turns, tools, templates with and without marks.

The chat template writes the whole conversation once, and it is encoded once. Where a turn is, the template's own
`{% generation %}` marks say, else the conversation up to the turn, which must be how the whole begins: a template that
writes earlier turns in another way once others follow (without their thinking, as Qwen3's) is found out, not guessed at. The
prompt of a turn must be the beginning of the whole in ids as well, since that is what the model gets when it answers.

A turn ends with the token that the template ends it with. Special tokens never come from messages.
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WhichTurns = Literal["all", "last"]
ASSISTANT = "assistant"
REASONING = ("reasoning_content", "thinking", "reasoning")  # names that thinking goes by beside `content`


@dataclass(frozen=True, slots=True)
class Turn:
    """The tokens [start, end) of one message: what its author writes and the token that ends it, without the header.

    message: its number, from 0.
    """

    message: int
    role: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """All tokens of a conversation, and the turns that were asked for, in order."""

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
    """Ids of the conversation, with the turns of the given roles, or the last one of them.

    Args:
        messages: as chat templates read them: role, content, and what else the template knows.
        tools: JSON schemas, as chat templates read them.
        roles: whose turns are wanted.
        which: all of them, or the last one.

    Raises:
        TextError: this conversation cannot be put to this template and tokenizer; the message is the reason.
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
    """Ids of a conversation of several turns, open for the assistant's next one. Raises TextError."""
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
    """The characters of a message in a whole that marks none: after the conversation before it, up to the next one."""
    role = messages[number]["role"]
    before = rendered(number, role == ASSISTANT) if number or role == ASSISTANT else ""
    after = whole if number == len(messages) - 1 else rendered(number + 1, False)
    for part, what in ((before, "before"), (after, "up to")):
        if not whole.startswith(part):
            raise TextError(
                f"the chat template writes earlier turns in another way once the rest follows: the conversation {what} message "
                f"{number} ({_difference(part, whole)}), so no tokens are the whole's and what the model answered to; take the "
                "last turn alone (data.turns=last), a template with {% generation %} marks, or set prompt.template_kwargs"
            )
    if role == ASSISTANT:
        return len(before), len(after)
    content = messages[number].get("content")
    text = content.strip() if isinstance(content, str) else ""
    at = whole.find(text, len(before), len(after)) if text else -1
    if at < 0:
        raise TextError(f"the chat template does not write a text as it is: message {number} ({role})")
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
    """The turn of these characters of the whole (with its breaks), once its prompt is known to be a prefix in ids."""
    prefix = whole[:start]
    first, last = encoded.tokens(len(without_breaks(prefix)), len(without_breaks(whole[:end])))
    if first < len(encoded.ids) and prefix:
        alone = _one_bos(encoded_frame(tokenizer, prefix), tokenizer).ids
        if alone.tolist() != encoded.ids[:first].tolist():
            raise TextError(
                f"the tokenizer joins a message with what is before it: message {number}, {prefix[-12:]!r} and what follows; "
                "begin or end the texts where a token does"
            )
    ends = encoded.special
    if marked:  # else the template writes it within
        last += bool(last < len(ends) and ends[last] and last > first and not ends[last - 1])
    elif closing := np.flatnonzero(ends[first:last]).tolist():
        tail = without_breaks(whole[:end])[encoded.span[first + closing[-1], 1] :]
        last = first + closing[-1] + 1 if not tail.strip() else last
    if first == last:
        raise TextError(f"the chat template writes nothing of a turn: message {number} ({role})")
    require_spelt(tokenizer, encoded, first, last)
    return Turn(number, role, first, last)


def require_spelt(tokenizer: PreTrainedTokenizerBase, encoded: Encoded, first: int, last: int) -> None:
    """The text of a turn survives encoding."""
    hidden = hidden_ids(tokenizer)
    spans = zip(encoded.ids[first:last].tolist(), encoded.span[first:last].tolist(), strict=True)
    at, text = encoded.span[first, 0] if first < last else 0, ""
    for token, (start, end) in spans:
        text += encoded.text[max(at, start) : end] if token not in hidden else ""
        at = max(at, end)
    if compared(decode(tokenizer, encoded.ids[first:last])) != compared(text):
        raise TextError("the tokenizer cannot spell this text")


def _ended(prompt: Chat, tokenizer: PreTrainedTokenizerBase, made: Conversation, *, ends_with: int) -> Conversation:
    """With the end token, where the template writes none after the assistant's last turn: else no end is learnt."""
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
    """Messages in which nothing spells a control token; the assistant may write special tokens that are part of answers."""
    special = special_tokens(tokenizer)
    controls = assistant_controls(prompt, tokenizer)
    made = []
    for message in messages:
        spelt = controls if message.get("role") == ASSISTANT else special
        safe = {key: broken(value, spelt) for key, value in message.items() if value is not None}
        thinking = next((safe[name] for name in REASONING if name in safe), None)
        if thinking is not None:  # as transformers does: templates differ in the name that they read
            safe = {"thinking": thinking, **safe, "reasoning_content": thinking}
        made.append(safe)
    return made


def assistant_controls(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Texts of the tokens that no message holds, of the assistant neither."""
    return _controls(prompt, tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=4)
def _controls(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, template: str) -> frozenset[str]:
    """template: the tokenizer's, which may be replaced."""
    del template
    end_id = prompt.end_id(tokenizer)
    ends = () if end_id is None else (end_id,)
    hidden = {text for text, token in special_tokens(tokenizer).items() if token in hidden_ids(tokenizer)}
    return frozenset({*control_tokens(tokenizer, ends=ends)} | hidden)


def _require_read(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> None:
    """What a template does not read would be left out in silence."""
    source = tokenizer.chat_template
    template = source if isinstance(source, str) else "\n".join((source or {}).values())
    used = {key for message in messages for key in message if message[key] is not None}
    given = {"tool_calls": "tool_calls" in used, "tools": bool(tools), REASONING[0]: bool(used & {*REASONING})}
    for name, there in given.items():
        if there and not any(word in template for word in (REASONING if name == REASONING[0] else (name,))):
            raise TextError(f"it has {name}, which the chat template of {tokenizer.name_or_path} does not read")


def _one_bos(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Without a second BOS at the front: a template that writes one and a text that begins with one."""
    ids = encoded.ids
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        return Encoded(encoded.text, ids[1:], encoded.span[1:], encoded.special[1:])
    return encoded


def _difference(part: str, whole: str) -> str:
    """Where two texts part ways, in a few characters of each."""
    at = next((i for i, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), min(len(part), len(whole)))
    shown = [repr(without_breaks(text[max(0, at - 8) : at + 24])) for text in (part, whole)]
    return f"{shown[0]}, then {shown[1]}"
