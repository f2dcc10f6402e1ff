"""A final answer that is text, compared after normalizing: as it is, or what a pattern of the user's finds."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import ClassVar, Literal

from cft.errors import BadValue
from cft.types import Verdict
from cft.verifiers.extract import Found, explicit_answer, last_line, phrase_answer
from cft.verifiers.numbers import normalized_text, read_number
from cft.verifiers.verdict import LastAnswer, by_number, gold_text, make_verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact(LastAnswer):
    """The final answer is text, compared after collapsing space and dropping a trailing full stop.

    Args:
        case_sensitive: whether A and a differ.
        fallback_last_line: without a marker or "the answer is", the last line that is not empty is the answer.
    """

    name: ClassVar[str] = "exact"
    version: ClassVar[str] = "3"
    case_sensitive: bool
    fallback_last_line: bool

    def __call__(self, response: str, answer: str) -> Verdict:
        found = explicit_answer(response) or phrase_answer(response)
        text = found.text if found else last_line(response) if self.fallback_last_line else ""
        if not text:
            return make_verdict("wrong", "", found, "no final answer")
        same = normalized_text(text, case_sensitive=self.case_sensitive) == normalized_text(
            gold_text(answer), case_sensitive=self.case_sensitive
        )
        return make_verdict("right" if same else "wrong", text, found, "compared as text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Regex(LastAnswer):
    """The last match of `pattern` holds the answer: its first group that matched, or all of it where it has none.

    A pattern can take for ever: run it under a pool.

    Args:
        pattern: a regular expression of Python's `re`.
        compare: "text" (normalized, case ignored) or "number" (exact).

    Raises:
        BadValue: `pattern` is no regular expression, or `compare` neither of the two.
    """

    name: ClassVar[str] = "regex"
    version: ClassVar[str] = "3"
    pattern: str
    compare: Literal["text", "number"]

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise BadValue(f"verifier.pattern: {self.pattern!r} is no regular expression: {error}") from error
        if self.compare not in ("text", "number"):
            raise BadValue(f"verifier.compare: expected text or number, found {self.compare!r}")

    def __call__(self, response: str, answer: str) -> Verdict:
        last = deque(re.finditer(self.pattern, response), maxlen=1)
        if not last:
            return make_verdict("wrong", "", None, "the pattern does not match")
        match = last[0]
        text = next((group for group in match.groups() if group is not None), match.group())
        # A match that ends with the text might have gone on.
        found = Found(text.strip(), "pattern", closed=match.end() < len(response))
        if self.compare == "text":
            same = normalized_text(text, case_sensitive=False) == normalized_text(answer, case_sensitive=False)
            return make_verdict("right" if same else "wrong", text, found, "compared as text")
        read, gold = read_number(text, whole=True), read_number(gold_text(answer), whole=True)
        if read.value is None or gold.value is None:
            decision = "undecided" if read.digits or gold.value is None else "wrong"
            return make_verdict(decision, text, found, read.reason or gold.reason)
        return by_number(read, gold, found)
