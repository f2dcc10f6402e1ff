"""Converts a question with a given answer to token ids, with any prompt; and texts without a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cft.prompts.chat import SLOT, Chat, Plain, PromptError, TextError, special_tokens
from cft.prompts.conversation import Conversation, Turn, assistant_controls, conversation, require_spelt
from cft.prompts.spelling import Encoded, broken, encoded_frame, without_breaks
from cft.types import ASSISTANT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cft.prompts.chat import Prompt


def completion(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, question: str, text: str) -> Conversation:
    """Ids of prompt, answer and end token, with the answer as the only turn. Raises TextError."""
    if isinstance(prompt, Chat):
        return conversation(
            prompt, tokenizer, [*prompt.asked(question), {"role": ASSISTANT, "content": text}], which="last"
        )
    if not isinstance(prompt, Plain):
        raise PromptError(
            f"prompt: {type(prompt).__name__} cannot be combined with given answers; use prompt=chat or plain"
        )
    frame = prompt.template.replace(SLOT, broken(question, special_tokens(tokenizer)))
    return _plain(prompt, tokenizer, frame, broken(text, assistant_controls(prompt, tokenizer)))


def plain_text(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, text: str, *, start: int, ends: bool
) -> Conversation:
    """Ids of a text without a template.

    Args:
        prompt: determines the end token.
        tokenizer: the tokenizer.
        text: the text.
        start: index of the first character of the turn, which extends to the end of the text.
        ends: whether to append the end token.

    Raises:
        TextError: the text cannot be encoded; for example, it spells a special token.
    """
    found = [token for token in special_tokens(tokenizer) if token in text]
    if found:
        raise TextError(
            f"it spells the special token {found[0]}, and texts are never encoded as special tokens; provide messages, whose "
            "template writes them, or token ids"
        )
    return _plain(prompt, tokenizer, text[:start], text[start:], ends=ends)


def _plain(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, before: str, after: str, *, ends: bool = True
) -> Conversation:
    """before, after: the texts before and in the turn, with BREAK characters."""
    whole = encoded_frame(tokenizer, before + after)
    border = len(without_breaks(before))
    first, last = whole.tokens(border, len(whole.text))
    if first == last:
        raise TextError("the answer is empty")
    if before and encoded_frame(tokenizer, before).ids.tolist() != whole.ids[:first].tolist():
        raise TextError(
            "the tokens of the prompt alone are not a prefix of the tokens of the whole text: the tokenizer merges the texts "
            f"around the boundary ({whole.text[max(0, border - 8) : border]!r} and {whole.text[border : border + 8]!r}); begin "
            "or end the texts at a token boundary"
        )
    require_spelt(tokenizer, whole, first, last)
    bos: Any = tokenizer.bos_token_id
    opened = list(tokenizer("", add_special_tokens=True)["input_ids"])[:1] == [bos] and whole.ids[0] != bos
    end_id = prompt.end_id(tokenizer) if ends else None
    closed = end_id is not None
    size = len(whole.text)
    made = Encoded(
        whole.text,
        np.array([*[bos] * opened, *whole.ids.tolist(), *[end_id] * closed], dtype=np.int32),
        np.array([*[[0, 0]] * opened, *whole.span.tolist(), *[[size, size]] * closed], dtype=np.int32),
        np.array([*[True] * opened, *whole.special.tolist(), *[True] * closed], dtype=bool),
    )
    return Conversation(made, (Turn(0, ASSISTANT, first + opened, last + opened + closed),))
