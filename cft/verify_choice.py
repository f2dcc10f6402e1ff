"""Questions with options, where the gold answer is `(B) text`: the letter and the text are right alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from cft.judging.answers import MAX_ANSWER_CHARS, read_number, same_number, tidy
from cft.judging.markers import explicit_answer, phrase_answer, several_choices
from cft.types import Verdict, Verifier
from cft.verify import chosen_on_last_line, make_verdict

_GOLD = re.compile(r"\(([A-Z])\)\s+(.+)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")
_LETTER_AND_TEXT = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.):])[.:]?\s+(.+)", re.DOTALL)
_FRACTION = re.compile(r"-?[0-9]+/[0-9]+")
_APART = re.compile(r"(?<=[0-9])[ \t]{1,4}/[ \t]{1,4}(?=[0-9])")
_BECAUSE = re.compile(r",?\s+(?:because|since|as|so)\b")
_REASON = re.compile(r"\s*(?:\.?\s*$|[.,;]\s|\(|\s(?:because|since|as|so)\b)")
_ANOTHER = re.compile(r"[,;]\s*(?:and|or|but|not)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A gold answer `(B) text` is one of several options; any other is judged by `inner`.

    Right is the option's letter or its text, in a marker, after "the answer is", else alone on the last line. A letter
    and a text that are not of one option, or several letters with the right one among them: undecided.
    """

    name: ClassVar[str] = "options"
    version: ClassVar[str] = "2"
    inner: Verifier

    def __call__(self, response: str, answer: str) -> Verdict:
        gold = _GOLD.fullmatch(answer.strip())
        if gold is None:
            apart = _FRACTION.fullmatch(answer.strip())  # TabMWP asks for fractions, and 1 / 3 is how many write one
            return self.inner(_APART.sub("/", response) if apart else response, answer)
        found = explicit_answer(response) or phrase_answer(response)
        text = found.text if found else chosen_on_last_line(response)
        judgement = _judged(text, letter=gold.group(1), option=gold.group(2))
        if found is None and judgement == "wrong" and f" {_bare(gold.group(2))} " in f" {_bare(text)} ":
            judgement = "undecided"
        return make_verdict(judgement, text if found or judgement == "right" else "", found, "compared as an option")

    def final(self, text: str) -> bool:
        """Not before the end: a later marker, phrase or line is the answer instead."""
        return False


def _judged(text: str, *, letter: str, option: str) -> Literal["right", "wrong", "undecided"]:
    if letter in several_choices(text):
        return "undecided"
    # An option "$5" is 5 to who writes it between dollars of a formula, so money is told by its number.
    plain = re.sub(r"[*\"“”$]", "", tidy(text[:MAX_ANSWER_CHARS])).strip()
    option = tidy(option).replace("$", "")
    if _bare(plain) == _bare(option) != "" or _same_amount(plain, option):
        return "right"
    if alone := _LETTER.fullmatch(plain):
        return "right" if alone.group(1).upper() == letter else "wrong"
    explained = re.match(r"(?:option|choice)?\s*\(?([A-Z])\)?(?![A-Za-z'’])", plain)
    if explained and _BECAUSE.match(plain, explained.end()):
        return "right" if explained.group(1) == letter else "wrong"
    if both := _LETTER_AND_TEXT.fullmatch(plain):
        same_letter, same_text = (both.group(1) or both.group(2)) == letter, _states(both.group(3), option)
        return "right" if same_letter and same_text else "undecided" if same_letter or same_text else "wrong"
    return "right" if _states(plain, option) else "wrong"


def _states(text: str, option: str) -> bool:
    """The option's text, perhaps with a reason behind it."""
    if _bare(text) == _bare(option):
        return True
    start = text.casefold().startswith(option.casefold().rstrip("."))
    end = len(option.rstrip("."))
    return start and _REASON.match(text, end) is not None and _ANOTHER.match(text, end) is None


def _same_amount(text: str, option: str) -> bool:
    """Two plain numbers, 5.00 and 5."""
    read, expected = read_number(text, whole=True), read_number(option, whole=True)
    return all(re.fullmatch(r"[\d.,\s]+", side) for side in (text, option)) and same_number(read, expected)


def _bare(text: str) -> str:
    """Letters, digits and what tells numbers apart, in small letters."""
    return " ".join(re.sub(r"(?<=[A-Za-z])\.|[^\w\s.:/%+-]", "", text.casefold()).rstrip(".").split())
