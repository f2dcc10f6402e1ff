"""Thinking is not graded: wraps another verifier, which gets the response without the text between the tags.

    <think> is it \\boxed{4}? no </think> \\boxed{5}     ->  " \\boxed{5}"
    is it \\boxed{4}? no </think> \\boxed{5}             ->  " \\boxed{5}", since templates may open the thinking
    <think> it must be \\boxed{4}                        ->  no answer

Tags do not nest, as in the parsers that serve such models: the first closing tag ends the thinking. A closing tag without an
opening one is ignored, except the first tag of a text, before which everything is thinking.
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
    """A text with its thinking replaced by line breaks.

    thinking: whether the text ends inside it. marked: whether a tag has come, so that later ones do not affect the beginning.
    """

    text: str
    thinking: bool
    marked: bool


def visible(text: str, tags: ThinkingTags) -> Visible:
    """One pass. Outside the thinking, once a tag has come, `visible(text + more)` starts with `visible(text)`, except for the
    start of a tag at the end of `text`."""
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
    """`inner` grades the text outside the thinking. Thinking that is never closed means no answer, regardless of the text
    before it, unless `inner` was final there.

    Args:
        inner: any verifier.
        open: opening tag, such as `<think>`.
        close: closing tag.

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
        """Never inside thinking, nor before the first tag: a closing tag would turn the text before it into thinking."""
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
    """`verifier` applied to the text outside the thinking; unchanged if no tags are given.

    Raises:
        BadValue: one tag alone is given.
    """
    return AfterThinking(inner=verifier, open=tags.open, close=tags.close) if any(tags) else verifier
