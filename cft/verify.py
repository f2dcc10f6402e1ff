"""Is a response's final answer right? One function judges: annotation, accuracy and reward call the same verifier.

A verifier is a plain value: picklable, deterministic, without an error on any model text. It judges in the calling
process; `cft/judging/verify_pool.py` runs it in worker processes with a hard deadline, which model text needs (`Math` and
`Regex` can take for ever on hostile input). Where a verifier cannot tell, it says undecided, never wrong.

A verifier of your own: a frozen dataclass with `name`, `version`, `__call__` and `final`, in an importable module.
One whose verdict is final once the first answer is complete wraps another: `cft/verify_first.py`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import json
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from cft.errors import BadValue, UserError
from cft.files import sha256_file
from cft.judging.algebra import Decided, equal_by_algebra
from cft.judging.answers import (
    MAX_ANSWER_CHARS,
    Reading,
    agrees,
    last_number,
    normalized_text,
    read_number,
    same_number,
)
from cft.judging.latex import one_spelling
from cft.judging.markers import (
    Found,
    explicit_answer,
    is_part,
    last_formulas,
    phrase_answer,
    rest_after_phrase,
    several_choices,
    stated_choice,
)
from cft.judging.math_compare import compare
from cft.types import Judgement, Verdict, Verifier

MAX_EXTRACTED_CHARS = 200


class BadVerifier(UserError, TypeError):
    """A class that cannot serve as a verifier; the message names it and what it lacks."""


def verifier_fingerprint(verifier: Verifier) -> str:
    """Class, version and arguments (a verifier among them likewise) as canonical JSON, for an annotation's manifest.

    Of a class from outside this package the hash of its source as well: a version that was not raised would let the
    verdicts of two programs pass for those of one. Raises BadVerifier.
    """
    return json.dumps(_described(verifier), sort_keys=True, default=_described)


def other_verifier_note(annotated: str, now: str) -> str:
    """What a reader must know where accuracy is judged by another verifier than an annotation; "" where it is not. Both as
    `verifier_fingerprint` gives them."""
    if annotated == now:
        return ""
    return (
        f"Note: the annotation was judged by {_told(annotated)}, accuracy is judged by {_told(now)}: a response that one of "
        "them takes for right the other may not. Choose the annotation's with verifier=..., if that is not meant"
    )


def _told(fingerprint: str) -> str:
    found = json.loads(fingerprint)
    arguments = ", ".join(f"{name}={value}" for name, value in sorted(found["args"].items()))
    return f"{found['class'].rpartition('.')[2]}({arguments}), version {found['version']}"


def _described(verifier: object) -> dict[str, Any]:
    if not dataclasses.is_dataclass(verifier) or isinstance(verifier, type):
        raise BadVerifier(
            f"{type(verifier).__qualname__} is not a dataclass, so its arguments cannot be fingerprinted; "
            "declare it with @dataclass(frozen=True, slots=True, kw_only=True)"
        )
    arguments: dict[str, Any] = {field.name: getattr(verifier, field.name) for field in dataclasses.fields(verifier)}
    kind = type(verifier)
    version = getattr(verifier, "version", None)
    if not isinstance(version, str) or not version:
        raise BadVerifier(
            f'verifier: {kind.__module__}.{kind.__qualname__} has no version; give it one, `version: ClassVar[str] = "1"`, '
            "and raise it whenever a verdict may change: annotations and results of different versions are never mixed"
        )
    if missing := [name for name in ("__call__", "final") if not callable(getattr(verifier, name, None))]:
        raise BadVerifier(
            f"verifier: {kind.__module__}.{kind.__qualname__} lacks {' and '.join(missing)}; see cft.types"
        )
    described = {"class": f"{kind.__module__}.{kind.__qualname__}", "version": version, "args": arguments}
    if kind.__module__.partition(".")[0] != __package__.partition(".")[0]:
        described["source"] = _source_hash(kind)
    return described


def _source_hash(kind: type) -> str:
    """Of the file that defines a class, in which its helpers stand as well; "" where there is none."""
    try:
        path = inspect.getsourcefile(kind)
    except TypeError:
        path = None
    return sha256_file(Path(path))[:16] if path else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numeric:
    """The final answer is a number, compared exactly as a fraction.

    Tolerated: thousands separators, currency, percent, a unit, a trailing full stop, `\\frac`, `1 1/2`, `x = 5`, powers
    of ten, "1.5 million"; a gold decimal of six places or more was rounded, and stands for what is near it.
    fallback_last_number: without a marker or "the answer is", the last number of the text is the answer.
    No number at all is wrong. An expression (`2^{3}`) or several numbers in a box: undecided; use `verifier=math`.
    """

    name: ClassVar[str] = "numeric"
    version: ClassVar[str] = "3"
    fallback_last_number: bool

    def __call__(self, response: str, answer: str) -> Verdict:
        gold_text = _gold(answer)
        gold = read_number(gold_text, whole=True)
        found = explicit_answer(response) or phrase_answer(response)
        if found is not None and _same_text(found.text, gold_text):
            return make_verdict("right", found.text, found, "the same text")
        if gold.value is None:
            return make_verdict("undecided", "", found, f"gold answer {_shown(gold_text)!r}: {gold.reason}")
        if found is not None:
            read = read_number(found.text, whole=found.kind in ("boxed", "<answer>"))
            if read.value is not None:
                return _by_number(read, gold, found)
            if found.kind != "phrase":
                # The marker is the answer: without a digit in it there is no number, with some only algebra can tell.
                return make_verdict("undecided" if read.digits else "wrong", found.text, found, read.reason)
            if read.open or (read.digits and not self.fallback_last_number):
                return make_verdict("undecided", found.text, found, read.reason)
        last = last_number(response) if self.fallback_last_number else None
        if last is None:
            return make_verdict("wrong", "", None, "no number stands as the final answer")
        read = read_number(last, whole=True)
        if read.value is None:
            return make_verdict("undecided", last, None, read.reason)
        return _by_number(read, gold, None)

    def final(self, text: str) -> bool:
        """Not before the end: a later marker, phrase or number is the answer instead."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """The final answer is text, compared after collapsing space and dropping a trailing full stop.

    fallback_last_line: without a marker or "the answer is", the last line that is not empty is the answer.
    """

    name: ClassVar[str] = "exact"
    version: ClassVar[str] = "2"
    case_sensitive: bool
    fallback_last_line: bool

    def __call__(self, response: str, answer: str) -> Verdict:
        found = explicit_answer(response) or phrase_answer(response)
        text = found.text if found else last_line(response) if self.fallback_last_line else ""
        if not text:
            return make_verdict("wrong", "", found, "no final answer")
        same = _normalized(text, self.case_sensitive) == _normalized(_gold(answer), self.case_sensitive)
        return make_verdict("right" if same else "wrong", text, found, "compared as text")

    def final(self, text: str) -> bool:
        """Not before the end: a later marker, phrase or line is the answer instead."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoice:
    """The final answer is one letter of `choices`: in a marker, after "the answer is", else on the last line, alone or as in
    "B is correct". Several letters, the right one among them ("A or B"): undecided."""

    name: ClassVar[str] = "multiple_choice"
    version: ClassVar[str] = "2"
    choices: str

    def __post_init__(self) -> None:
        if not self.choices.isalpha() or self.choices != self.choices.upper():
            raise BadValue(f"verifier.choices: expected capital letters such as ABCDE, found {self.choices!r}")

    def __call__(self, response: str, answer: str) -> Verdict:
        gold = self._letter(_gold(answer), whole=False)
        if not gold:
            return make_verdict("undecided", "", None, f"the gold answer {_shown(answer)!r} is none of {self.choices}")
        found = explicit_answer(response) or phrase_answer(response)
        text = found.text if found else chosen_on_last_line(response)
        if gold in (named := several_choices(text)):
            return make_verdict("undecided", text, found, f"several are named: {', '.join(sorted(named))}")
        letter = self._letter(text, whole=found is None)
        if not letter:
            return make_verdict(
                "wrong", text if found else "", found, f"none of {self.choices} stands as the final answer"
            )
        return make_verdict("right" if letter == gold else "wrong", letter, found, "compared as a choice")

    def _letter(self, text: str, *, whole: bool) -> str:
        """The letter that a text states; whole: nothing else may stand there. "A dog" states none, "B because" does."""
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

    def final(self, text: str) -> bool:
        """Not before the end: a later marker, phrase or line is the answer instead."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Regex:
    """The last match of `pattern` holds the answer: its first group that matched, or all of it where it has none.

    compare: "text" (normalised, case ignored) or "number" (exact). A pattern can take for ever: run it under a pool.
    """

    name: ClassVar[str] = "regex"
    version: ClassVar[str] = "2"
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
            same = _normalized(text, False) == _normalized(answer, False)
            return make_verdict("right" if same else "wrong", text, found, "compared as text")
        read, gold = read_number(text, whole=True), read_number(_gold(answer), whole=True)
        if read.value is None or gold.value is None:
            judgement = "undecided" if read.digits or gold.value is None else "wrong"
            return make_verdict(judgement, text, found, read.reason or gold.reason)
        return _by_number(read, gold, found)

    def final(self, text: str) -> bool:
        """Not before the end: a later match is the answer instead, and of `pattern` nothing is known."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Math:
    """The final answer is LaTeX: equal as text, as a number, part by part, else by math-verify (computer algebra).

    lists: whether the order of a list without brackets matters (1, 2 and 2, 1): "set" (it does not), "sequence" (it
    does), "unknown" (another order is undecided). Tuples and vectors are ordered, sets and "1 or 2" are not.
    What computer algebra could choke on is refused beforehand (undecided); what passes still needs the deadline of a
    pool, since this class has none. The first call that reaches math-verify imports it, which takes a second.
    """

    name: ClassVar[str] = "math"
    fallback_last_number: bool
    lists: Literal["set", "sequence", "unknown"]

    def __post_init__(self) -> None:
        if self.lists not in ("set", "sequence", "unknown"):
            raise BadValue(f"verifier.lists: expected set, sequence or unknown, found {self.lists!r}")

    @property
    def version(self) -> str:
        libraries = ("math-verify", "latex2sympy2_extended", "sympy")
        return "3, " + ", ".join(f"{library} {importlib.metadata.version(library)}" for library in libraries)

    def __call__(self, response: str, answer: str) -> Verdict:
        gold = _gold(answer)
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
        """(verdict, the answer, reason) of a formula as it stands, and of its right side where it is an equation."""
        judgement, reason = self._compared(text, gold)
        right = text.rpartition("=")[2].strip(" &")
        if judgement == "right" or right == text or not right:
            return judgement, text, reason
        second, why = self._compared(right, gold)
        return (second, right, why) if second == "right" or judgement == "wrong" else (judgement, text, reason)

    def _verdict(self, text: str, gold: str, found: Found | None) -> Verdict:
        judgement, reason = self._compared(text, gold)
        return make_verdict(judgement, text, found, reason)

    def _compared(self, text: str, gold: str) -> tuple[Decided, str]:
        return compare(gold=gold, answer=text, lists=self.lists, algebra=_algebra)

    def final(self, text: str) -> bool:
        """Not before the end: a later marker, phrase or number is the answer instead."""
        return False


def _algebra(gold: str, prediction: str) -> tuple[Decided, str]:
    return equal_by_algebra(gold=gold, prediction=prediction)


def _letter_alone(line: str) -> str:
    match = re.fullmatch(r"[*\s(]*([A-Z])[)*.\s]*", line)
    return match.group(1) if match else ""


def _gold(answer: str) -> str:
    """A gold answer as it stands, or what its marker holds (GSM8K's worked solutions end in `#### 18`)."""
    found = explicit_answer(answer)
    return found.text if found else answer.strip()


def _normalized(text: str, case_sensitive: bool) -> str:
    return normalized_text(text, case_sensitive=case_sensitive)


def _same_text(a: str, b: str) -> bool:
    return a.strip() != "" and " ".join(a.split()) == " ".join(b.split())


def _by_number(read: Reading, gold: Reading, found: Found | None) -> Verdict:
    return make_verdict("right" if agrees(read, gold) else "wrong", read.text, found, "compared as numbers")


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def chosen_on_last_line(text: str) -> str:
    """What the last line states as a choice ("Therefore, B is correct."), else all of it."""
    line = last_line(text)
    return stated_choice(line[-MAX_ANSWER_CHARS:]) or line


def _shown(text: str) -> str:
    """Model text that can be stored and printed: short, valid Unicode, no NUL."""
    text = text if len(text) <= MAX_EXTRACTED_CHARS else text[: MAX_EXTRACTED_CHARS - 1] + "…"
    return text.encode("utf-8", errors="replace").decode("utf-8").replace("\0", "")


def make_verdict(
    judgement: Literal["right", "wrong", "undecided"], extracted: str, found: Found | None, reason: str
) -> Verdict:
    explicit = found is not None and found.explicit
    return Verdict(judgement=Judgement(judgement), extracted=_shown(extracted), explicit=explicit, reason=reason)
