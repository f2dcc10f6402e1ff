"""Thinking is no answer: a verifier around another one, which is given a response without what stands between the tags.

    <think> is it \\boxed{4}? no </think> \\boxed{5}     ->  " \\boxed{5}"
    is it \\boxed{4}? no </think> \\boxed{5}             ->  " \\boxed{5}", since templates may open the thinking
    <think> it must be \\boxed{4}                        ->  no answer

Tags do not nest, as in the parsers that serve such models: the first closing tag ends a thinking, and one that closes
nothing is passed over, but the first of a text, before which all is thinking.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from cft.errors import BadValue
from cft.types import ThinkingTags, Verdict, Verifier
from cft.verifiers.verdict import make_verdict


class Visible(NamedTuple):
    """A text without its thinking, the places of which are line breaks.

    thinking: whether the text ends in it. marked: whether a tag has come, so that no later one says what the beginning is.
    """

    text: str
    thinking: bool
    marked: bool


def visible(text: str, tags: ThinkingTags) -> Visible:
    """One pass. For outside text, `visible(text + more)` begins with `visible(text)` once a tag has come, but for the
    beginning of a tag at the end of `text`."""
    before, *rest = re.split(f"({re.escape(tags.open)}|{re.escape(tags.close)})", text)
    if not rest:
        return Visible(before, thinking=False, marked=False)
    parts = [before] if rest[0] == tags.open else []
    thinking = False
    for tag, following in zip(rest[::2], rest[1::2], strict=True):
        thinking = tag == tags.open
        if not thinking:
            parts.append(following)
    return Visible("\n".join(parts), thinking, marked=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterThinking:
    """`inner` grades what is outside of thinking. Thinking that is never closed leaves no answer, whatever came before it,
    unless `inner` was final there.

    Args:
        inner: any verifier.
        open: begins thinking, such as `<think>`.
        close: ends it.

    Raises:
        BadValue: a tag is empty, or one holds the other.
    """

    name: ClassVar[str] = "after_thinking"
    version: ClassVar[str] = "1"
    can_be_final: ClassVar[bool] = True  # where `inner` can
    inner: Verifier
    open: str
    close: str

    def __post_init__(self) -> None:
        for key, tag, other in (("open", self.open, self.close), ("close", self.close, self.open)):
            if not tag.strip() or tag in other:
                raise BadValue(
                    f"verify.thinking.{key}: expected two different tags such as <think> and </think>, none of which is a "
                    f"part of the other, or '' for both (nothing is thinking), found {self.open!r} and {self.close!r}"
                )

    @property
    def tags(self) -> ThinkingTags:
        return ThinkingTags(self.open, self.close)

    def __call__(self, response: str, answer: str) -> Verdict:
        seen = visible(response, self.tags)
        if seen.thinking and not self.inner.final(seen.text):
            return make_verdict("wrong", "", None, f"no answer: the thinking was not closed by {self.close}")
        return self.inner(seen.text, answer)

    def final(self, text: str) -> bool:
        """Not inside of thinking, nor before the first tag: a closing one makes thinking of all that came before it."""
        if not self.inner.can_be_final:
            return False
        seen = visible(text, self.tags)
        open_end = 0 if seen.thinking else begun(text, self.tags)
        return seen.marked and self.inner.final(seen.text[: max(0, len(seen.text) - open_end)])


def begun(text: str, tags: Collection[str]) -> int:
    """Characters at the end of a text that may become one of `tags`."""
    longest = max(map(len, tags)) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(tag.startswith(text[-n:]) for tag in tags)), 0)


def after_thinking(verifier: Verifier, tags: ThinkingTags) -> Verifier:
    """`verifier` on what is outside of thinking; itself where no tags are given.

    Raises:
        BadValue: one tag alone is given.
    """
    return AfterThinking(inner=verifier, open=tags.open, close=tags.close) if any(tags) else verifier
