"""A final answer that is one of several choices: a letter alone, or the letter or the text of an option."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from cft.errors import BadValue
from cft.types import Verdict, Verifier
from cft.verifiers.extract import explicit_answer, last_line, phrase_answer, several_choices, stated_choice
from cft.verifiers.numbers import MAX_ANSWER_CHARS, read_number, same_number, tidy
from cft.verifiers.verdict import LastAnswer, gold_text, make_verdict, shown

_GOLD = re.compile(r"\(([A-Z])\)\s+(.+)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")
_LETTER_AND_TEXT = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.):])[.:]?\s+(.+)", re.DOTALL)
_FRACTION = re.compile(r"-?[0-9]+/[0-9]+")
_APART = re.compile(r"(?<=[0-9])[ \t]{1,4}/[ \t]{1,4}(?=[0-9])")
_BECAUSE = re.compile(r",?\s+(?:because|since|as|so)\b")
_REASON = re.compile(r"\s*(?:\.?\s*$|[.,;]\s|\(|\s(?:because|since|as|so)\b)")
_ANOTHER = re.compile(r"[,;]\s*(?:and|or|but|not)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoice(LastAnswer):
    """The final answer is one letter of `choices`: in a marker, after "the answer is", else on the last line, alone or as in
    "B is correct". Several letters, the right one among them ("A or B"): undecided.

    Args:
        choices: capital letters, such as ABCDE.

    Raises:
        BadValue: `choices` holds anything else.
    """

    name: ClassVar[str] = "multiple_choice"
    version: ClassVar[str] = "3"
    choices: str

    def __post_init__(self) -> None:
        if not self.choices.isalpha() or self.choices != self.choices.upper():
            raise BadValue(f"verifier.choices: expected capital letters such as ABCDE, found {self.choices!r}")

    def __call__(self, response: str, answer: str) -> Verdict:
        gold = self._letter(gold_text(answer), whole=False)
        if not gold:
            return make_verdict("undecided", "", None, f"the gold answer {shown(answer)!r} is none of {self.choices}")
        found = explicit_answer(response) or phrase_answer(response)
        text = found.text if found else chosen_on_last_line(response)
        if gold in (named := several_choices(text)):
            return make_verdict("undecided", text, found, f"several are named: {', '.join(sorted(named))}")
        letter = self._letter(text, whole=found is None)
        if not letter:
            return make_verdict("wrong", text if found else "", found, f"none of {self.choices} is the final answer")
        return make_verdict("right" if letter == gold else "wrong", letter, found, "compared as a choice")

    def _letter(self, text: str, *, whole: bool) -> str:
        """The letter that a text states; whole: nothing else may be there. "A dog" states none, "B because" does."""
        text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}|[*$]", r"\1", text[:MAX_ANSWER_CHARS]).strip()
        bare = re.fullmatch(rf"\(?([{self.choices}])\)?[.:,]?", text, re.IGNORECASE)
        if bare or whole:
            return bare.group(1).upper() if bare else ""
        letter = f"[{self.choices}]"
        match = re.match(rf"(?:option|choice)?\s*(?:\(({letter})\)|({letter})(?![A-Za-z'’]))", text)
        if match is None:
            return ""
        letter = match.group(1) or match.group(2)
        article = match.group(2) in ("A", "I") and re.match(r"\s+[a-z]", text[match.end() :])
        return "" if article else letter


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(LastAnswer):
    """A gold answer `(B) text` is one of several options; any other is graded by `inner`.

    Right is the option's letter or its text, in a marker, after "the answer is", else alone on the last line. A letter
    and a text that are not of one option, or several letters with the right one among them: undecided.

    Args:
        inner: grades answers that are no option.
    """

    name: ClassVar[str] = "options"
    version: ClassVar[str] = "3"
    inner: Verifier

    def __call__(self, response: str, answer: str) -> Verdict:
        gold = _GOLD.fullmatch(answer.strip())
        if gold is None:
            apart = _FRACTION.fullmatch(answer.strip())  # TabMWP asks for fractions, and 1 / 3 is how many write one
            return self.inner(_APART.sub("/", response) if apart else response, answer)
        found = explicit_answer(response) or phrase_answer(response)
        text = found.text if found else chosen_on_last_line(response)
        decision = _graded(text, letter=gold.group(1), option=gold.group(2))
        if found is None and decision == "wrong" and f" {_bare(gold.group(2))} " in f" {_bare(text)} ":
            decision = "undecided"
        return make_verdict(decision, text if found or decision == "right" else "", found, "compared as an option")


def chosen_on_last_line(text: str) -> str:
    """What the last line states as a choice ("Therefore, B is correct."), else all of it."""
    line = last_line(text)
    return stated_choice(line[-MAX_ANSWER_CHARS:]) or line


def _graded(text: str, *, letter: str, option: str) -> Literal["right", "wrong", "undecided"]:
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
