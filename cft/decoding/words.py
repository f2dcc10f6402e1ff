"""Tokenizer facts for decoding rules: end tokens, thinking tags, single tokens, and the text so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cft.errors import BadValue
from cft.prompts.chat import encoded
from cft.types import NO_THINKING, ThinkingTags, Written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEPT = 100_000  # size of the cache of endings


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """Args:
    tokenizer: Of the model that decodes.
    eos_ids: Every token that ends a response.
    thinking: What opens and closes thinking (`verify.thinking`), or two empty texts.
    choices: Letters that the verifier knows as answers, "" where it names none.
    """

    tokenizer: PreTrainedTokenizerBase
    eos_ids: Sequence[int]
    thinking: ThinkingTags = NO_THINKING
    choices: str = ""
    _ends: dict[tuple[int, ...], bool] = field(default_factory=dict)
    _tags: list[tuple[int, int]] = field(default_factory=list)

    def token(self, text: str) -> int | None:
        """The vocabulary's entry for a text, None if there is none."""
        found = self.tokenizer.convert_tokens_to_ids(text)
        return found if isinstance(found, int) and found != self.tokenizer.unk_token_id else None

    def spaced(self, text: str) -> int | None:
        """The single token of a text after a space, None if it takes more than one."""
        ids = encoded(self.tokenizer, f" {text}")
        return ids[0] if len(ids) == 1 else None

    @property
    def tags(self) -> tuple[int, int]:
        """Tokens that open and close thinking. Raises BadValue if a tag takes more than one token, or there is none."""
        if not self._tags:
            ids = [encoded(self.tokenizer, tag) for tag in self.thinking]
            for key, tag, found in zip(("open", "close"), self.thinking, ids, strict=True):
                if len(found) != 1:
                    raise BadValue(
                        f"decoding: it needs the tag {tag!r} (verify.thinking.{key}) as one token, and the tokenizer of "
                        f"{self.tokenizer.name_or_path} writes it with {len(found)}; name the tags that the model writes, or "
                        "choose a rule for the end of the response (decoding=min_length or stop_scaling with "
                        "decoding.end=eos)"
                    )
            self._tags.append((ids[0][0], ids[1][0]))
        return self._tags[0]

    def end_ids(self, end: str) -> list[int]:
        return sorted(self.eos_ids) if end == "eos" else [self.tags[1]]

    def thought(self, row: Written) -> int | None:
        """Number of response tokens since the last tag if that was an opening one; None if it was a closing one, or there was
        none."""
        opened, closed = self.tags
        backwards = row.ids[::-1]
        if opened not in backwards:
            return None
        since = backwards.index(opened)
        return None if closed in backwards[:since] else min(since, len(row.ids) - row.prompt_len)

    def ends_with(self, ids: Sequence[int], texts: Sequence[str]) -> bool:
        """Whether the text of ids ends with one of `texts`; decodes as many tokens as the longest has characters."""
        last = tuple(ids[-max(map(len, texts)) :])
        if (known := self._ends.get(last)) is None:
            if len(self._ends) > KEPT:
                self._ends.clear()
            text = str(self.tokenizer.decode(list(last), skip_special_tokens=False, clean_up_tokenization_spaces=False))
            known = self._ends[last] = text.endswith(tuple(texts))
        return known
