"""A final answer that is a number, compared exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cft.types import Verdict
from cft.verifiers.extract import explicit_answer, phrase_answer
from cft.verifiers.numbers import last_number, read_number
from cft.verifiers.verdict import LastAnswer, by_number, gold_text, make_verdict, same_text, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Numeric(LastAnswer):
    """The final answer is a number, compared exactly as a fraction.

    Tolerated: thousands separators, currency, percent, a unit, a trailing full stop, `\\frac`, `1 1/2`, `x = 5`, powers
    of ten, "1.5 million"; a gold decimal of six places or more was rounded, and means what is near it.
    No number at all is wrong. An expression (`2^{3}`) or several numbers in a box: undecided; use `verifier=math`.

    Args:
        fallback_last_number: without a marker or "the answer is", the last number of the text is the answer.
    """

    name: ClassVar[str] = "numeric"
    version: ClassVar[str] = "4"
    fallback_last_number: bool

    def __call__(self, response: str, answer: str) -> Verdict:
        expected = gold_text(answer)
        gold = read_number(expected, whole=True)
        found = explicit_answer(response) or phrase_answer(response)
        if found is not None and same_text(found.text, expected):
            return make_verdict("right", found.text, found, "the same text")
        if gold.value is None:
            return make_verdict("undecided", "", found, f"gold answer {shown(expected)!r}: {gold.reason}")
        if found is not None:
            read = read_number(found.text, whole=found.kind in ("boxed", "<answer>"))
            if read.value is not None:
                return by_number(read, gold, found)
            if found.kind != "phrase":
                # The marker is the answer: without a digit in it there is no number, with some only algebra can tell.
                return make_verdict("undecided" if read.digits else "wrong", found.text, found, read.reason)
            if read.open or (read.digits and not self.fallback_last_number):
                return make_verdict("undecided", found.text, found, read.reason)
        last = last_number(response) if self.fallback_last_number else None
        if last is None:
            return make_verdict("wrong", "", None, "no number is the final answer")
        read = read_number(last, whole=True)
        if read.value is None:
            return make_verdict("undecided", last, None, read.reason)
        return by_number(read, gold, None)
