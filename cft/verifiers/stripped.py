"""Markup is no answer: a verifier around another one, which is given a response without some texts (`verify.strip`).

<Answer>#### 5</Answer>     ->  "#### 5"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cft.errors import BadValue
from cft.types import Verdict, Verifier
from cft.verifiers.thinking import AfterThinking, begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Stripped:
    """`inner` grades a response in which every one of some texts is left out, longer ones first.

    Args:
        inner: any verifier.
        texts: such as `<Answer>` and `</Answer>`.

    Raises:
        BadValue: a text is empty.
    """

    name: ClassVar[str] = "stripped"
    version: ClassVar[str] = "1"
    can_be_final: ClassVar[bool] = True  # where `inner` can
    inner: Verifier
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if "" in self.texts:
            raise BadValue("verify.strip: expected texts such as <Answer>, found an empty one")

    def __call__(self, response: str, answer: str) -> Verdict:
        return self.inner(self._without(response), answer)

    def final(self, text: str) -> bool:
        """Of what stays whatever follows: the beginning of a text that is left out is not looked at yet."""
        if not self.inner.can_be_final:
            return False
        return self.inner.final(self._without(text[: len(text) - begun(text, self.texts)]))

    def _without(self, text: str) -> str:
        for left_out in sorted(self.texts, key=len, reverse=True):
            text = text.replace(left_out, "")
        return text


def stripped(verifier: Verifier, texts: Sequence[str]) -> Verifier:
    """`verifier` on a response without these texts; itself where there are none."""
    return Stripped(inner=verifier, texts=tuple(texts)) if texts else verifier


def innermost(verifier: Verifier) -> Verifier:
    """What grades in the end: inside of what leaves thinking and markup out."""
    while isinstance(verifier, AfterThinking | Stripped):
        verifier = verifier.inner
    return verifier
