"""Questions with options, where the gold answer is `(B) text`: the letter and the text are right alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from cft.judging.answers import MAX_ANSWER_CHARS, tidy
from cft.judging.markers import explicit_answer, phrase_answer
from cft.types import Verdict, Verifier
from cft.verify import last_line, make_verdict

_GOLD = re.compile(r"\(([A-Z])\)\s+(.+)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")
_LETTER_AND_TEXT = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.):])[.:]?\s+(.+)", re.DOTALL)
_BECAUSE = re.compile(r",?\s+(?:because|since|as|so)\b")
_REASON = re.compile(r"\s*(?:\.?\s*$|\.\s|\(|,?\s(?:because|since|as|so)\b)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A gold answer `(B) text` is one of several options; any other is judged by `inner`.

    Right is the option's letter or its text, in a marker, after "the answer is", else alone on the last line. A letter
    and a text that are not of one option: undecided.
    """

    name: ClassVar[str] = "options"
    version: ClassVar[str] = "1"
    inner: Verifier

    def __call__(self, response: str, answer: str) -> Verdict:
        gold = _GOLD.fullmatch(answer.strip())
        if gold is None:
            return self.inner(response, answer)
        found = explicit_answer(response) or phrase_answer(response)
        text = found.text if found else last_line(response)
        judgement = _judged(text, letter=gold.group(1), option=gold.group(2))
        if found is None and judgement == "wrong" and f" {_bare(gold.group(2))} " in f" {_bare(text)} ":
            judgement = "undecided"
        return make_verdict(judgement, text if found or judgement == "right" else "", found, "compared as an option")

    def final(self, text: str) -> bool:
        """Not before the end: a later marker, phrase or line is the answer instead."""
        return False


def _judged(text: str, *, letter: str, option: str) -> Literal["right", "wrong", "undecided"]:
    plain = re.sub(r"[*\"“”]", "", tidy(text[:MAX_ANSWER_CHARS])).strip()
    if _bare(plain) == _bare(option) != "":
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
    return start and _REASON.match(text, len(option.rstrip("."))) is not None


def _bare(text: str) -> str:
    """Letters, digits and what tells numbers apart, in small letters."""
    return " ".join(re.sub(r"(?<=[A-Za-z])\.|[^\w\s.:/%$+-]", "", text.casefold()).rstrip(".").split())
