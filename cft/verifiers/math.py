"""A final answer in LaTeX, or a number: plain Python where that is enough, else computer algebra."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from cft.errors import BadValue
from cft.types import Verdict
from cft.verifiers.algebra import Decided, equal_by_algebra
from cft.verifiers.compare import compare, equation_sides
from cft.verifiers.extract import (
    Found,
    explicit_answer,
    is_part,
    last_formulas,
    last_line,
    phrase_answer,
    rest_after_phrase,
)
from cft.verifiers.latex import one_spelling
from cft.verifiers.numbers import last_number, read_number, same_number
from cft.verifiers.verdict import LastAnswer, gold_text, make_verdict

# Their verdicts are ours.
_LIBRARIES = ", ".join(
    f"{library} {importlib.metadata.version(library)}" for library in ("math-verify", "latex2sympy2_extended", "sympy")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Math(LastAnswer):
    """The final answer is LaTeX: equal as text, as a number, part by part, else by math-verify (computer algebra).

    What computer algebra could choke on is refused beforehand (undecided); what passes still needs the deadline of a
    pool, since this class has none. The first call that reaches math-verify imports it, which takes a second.

    Args:
        fallback_last_number: without a marker or "the answer is", the last number of the text is the answer.
        lists: whether the order of a list without brackets matters (1, 2 and 2, 1): "set" (it does not), "sequence" (it
            does), "unknown" (another order is undecided). Tuples and vectors are ordered, sets and "1 or 2" are not.

    Raises:
        BadValue: `lists` is none of the three.
    """

    name: ClassVar[str] = "math"
    version: ClassVar[str] = f"5, {_LIBRARIES}"
    fallback_last_number: bool
    lists: Literal["set", "sequence", "unknown"]

    def __post_init__(self) -> None:
        if self.lists not in ("set", "sequence", "unknown"):
            raise BadValue(f"verifier.lists: expected set, sequence or unknown, found {self.lists!r}")

    def __call__(self, response: str, answer: str) -> Verdict:
        gold = gold_text(answer)
        found = explicit_answer(response) or phrase_answer(response)
        if found is None:
            return self._unmarked(response, gold)
        text = found.text
        if found.kind == "phrase":
            # The sentence may end inside the answer ("Yes. It is continuous"): then all of what follows is it.
            rest = rest_after_phrase(response)
            if rest != text and one_spelling(rest) == one_spelling(gold) != "":
                return make_verdict("right", rest, found, "the same text")
        if found.kind in ("phrase", "####"):
            # An explanation may follow: "5, since 2 + 3 = 5".
            read, expected = read_number(text, whole=False), read_number(gold, whole=True)
            if read.plain_integer and expected.plain_integer:
                same = same_number(read, expected)
                return make_verdict("right" if same else "wrong", text, found, "compared as numbers")
        return self._verdict(text, gold, found)

    def _unmarked(self, response: str, gold: str) -> Verdict:
        """Without a marker: a last line that is a letter where the gold answer is one, else the formula or number that the
        text ends in. A number that is part of an expression is not the answer, and neither is it a wrong one."""
        if re.fullmatch(r"\(?[A-Z]\)?", gold.strip()) and (letter := _letter_alone(last_line(response))):
            return self._verdict(letter, gold, None)
        if not self.fallback_last_number:
            return make_verdict("wrong", "", None, "no final answer")
        number = last_number(response)
        if formulas := last_formulas(response):
            listed, rest = formulas
            inside = last_number(rest) is None and (number is None or last_number(listed) is not None)
            decided, text, reason = self._sides(listed, gold)
            if inside or (decided == "right" and last_number(rest) is None):
                return make_verdict(decided, text, None, reason)
        if number is None:
            return make_verdict("wrong", "", None, "no final answer")
        start = response.replace("\u2212", "-").rfind(number)
        start = start if start >= 0 else response.rfind(number[1:])  # "minus 5"
        line = last_line(response).rstrip(". ")
        open_ended = read_number(gold, whole=True).value is None and re.search(r"[=^_\\]", line)
        if not open_ended and not is_part(response, start, start + len(number)):
            return self._verdict(number, gold, None)
        decided, text, reason = self._sides(line, gold)
        if decided != "right":
            decided, reason = (
                "undecided",
                "the last number is part of an expression, and no marker says where that begins",
            )
        return make_verdict(decided, text, None, reason)

    def _sides(self, text: str, gold: str) -> tuple[Decided, str, str]:
        """(verdict, the answer, reason) of a formula as it is, and of its right side where it is an equation."""
        decision, reason = self._compared(text, gold)
        right = equation_sides(text)[-1].strip(" &")
        if decision == "right" or right == text or not right:
            return decision, text, reason
        second, why = self._compared(right, gold)
        return (second, right, why) if second == "right" or decision == "wrong" else (decision, text, reason)

    def _verdict(self, text: str, gold: str, found: Found | None) -> Verdict:
        decision, reason = self._compared(text, gold)
        return make_verdict(decision, text, found, reason)

    def _compared(self, text: str, gold: str) -> tuple[Decided, str]:
        return compare(gold=gold, answer=text, lists=self.lists, algebra=equal_by_algebra)


def _letter_alone(line: str) -> str:
    match = re.fullmatch(r"[*\s(]*([A-Z])[)*.\s]*", line)
    return match.group(1) if match else ""
