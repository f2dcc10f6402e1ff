"""Is a response's final answer right? One function judges: annotation, accuracy and reward call the same verifier.

A verifier is a plain value: picklable, deterministic, without an error on any model text. It judges in the calling
process; `cft/verify_pool.py` runs it in worker processes with a hard deadline, which model text needs (`Math` and
`Regex` can take for ever on hostile input). Where a verifier cannot tell, it says undecided, never wrong.

A verifier of your own: a frozen dataclass with `name`, `version`, `__call__` and `final`, in an importable module.
One whose verdict is final once the first answer is complete wraps another: `cft/verify_first.py`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from cft.answers import (
    MAX_ANSWER_CHARS,
    Found,
    Reading,
    explicit_answer,
    last_number,
    normalized_text,
    phrase_answer,
    read_number,
    same_number,
)
from cft.errors import BadValue
from cft.types import Judgement, Verdict, Verifier

MAX_NESTING = 32
MAX_EXTRACTED_CHARS = 200
NO_LIMIT = 0  # seconds: math-verify's own time limits are off


def verifier_fingerprint(verifier: Verifier) -> str:
    """Class, version and arguments (a verifier among them likewise) as canonical JSON, for an annotation's manifest."""
    return json.dumps(_described(verifier), sort_keys=True, default=_described)


def _described(verifier: object) -> dict[str, Any]:
    if not dataclasses.is_dataclass(verifier) or isinstance(verifier, type):
        raise TypeError(
            f"{type(verifier).__qualname__} is not a dataclass, so its arguments cannot be fingerprinted; "
            "declare it with @dataclass(frozen=True, slots=True, kw_only=True)"
        )
    arguments: dict[str, Any] = {field.name: getattr(verifier, field.name) for field in dataclasses.fields(verifier)}
    kind = type(verifier)
    # `version` is no part of the protocol that drivers need, but a fingerprint without it would lie.
    version = str(verifier.version)  # pyright: ignore[reportAttributeAccessIssue]
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "version": version, "args": arguments}


@dataclass(frozen=True, slots=True, kw_only=True)
class Numeric:
    """The final answer is a number, compared exactly as a fraction.

    Tolerated: thousands separators, currency, percent, a unit, a trailing full stop, `\\frac`, `1 1/2`, `x = 5`.
    fallback_last_number: without a marker or "the answer is", the last number of the text is the answer.
    No number at all is wrong. An expression (`2^{3}`) or several numbers in a box: undecided; use `verifier=math`.
    """

    name: ClassVar[str] = "numeric"
    version: ClassVar[str] = "1"
    fallback_last_number: bool

    def __call__(self, response: str, answer: str) -> Verdict:
        gold_text = _gold(answer)
        gold = read_number(gold_text, whole=True)
        found = explicit_answer(response) or phrase_answer(response)
        if found is not None and _same_text(found.text, gold_text):
            return _verdict("right", found.text, found, "the same text")
        if gold.value is None:
            return _verdict("undecided", "", found, f"gold answer {_shown(gold_text)!r}: {gold.reason}")
        if found is not None:
            read = read_number(found.text, whole=found.kind in ("boxed", "<answer>"))
            if read.value is not None:
                return _by_number(read, gold, found)
            if found.kind != "phrase":
                # The marker is the answer: without a digit in it there is no number, with some only algebra can tell.
                return _verdict("undecided" if read.digits else "wrong", found.text, found, read.reason)
            if read.digits and not self.fallback_last_number:
                return _verdict("undecided", found.text, found, read.reason)
            if read.reason.startswith("the answer is an expression"):
                return _verdict("undecided", found.text, found, read.reason)
        last = last_number(response) if self.fallback_last_number else None
        if last is None:
            return _verdict("wrong", "", None, "no number stands as the final answer")
        read = read_number(last, whole=True)
        if read.value is None:
            return _verdict("undecided", last, None, read.reason)
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
    version: ClassVar[str] = "1"
    case_sensitive: bool
    fallback_last_line: bool

    def __call__(self, response: str, answer: str) -> Verdict:
        found = explicit_answer(response) or phrase_answer(response)
        text = found.text if found else _last_line(response) if self.fallback_last_line else ""
        if not text:
            return _verdict("wrong", "", found, "no final answer")
        same = _normalized(text, self.case_sensitive) == _normalized(_gold(answer), self.case_sensitive)
        return _verdict("right" if same else "wrong", text, found, "compared as text")

    def final(self, text: str) -> bool:
        """Not before the end: a later marker, phrase or line is the answer instead."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoice:
    """The final answer is one letter of `choices`: in a marker, after "the answer is", else alone on the last line."""

    name: ClassVar[str] = "multiple_choice"
    version: ClassVar[str] = "1"
    choices: str

    def __post_init__(self) -> None:
        if not self.choices.isalpha() or self.choices != self.choices.upper():
            raise BadValue(f"verifier.choices: expected capital letters such as ABCDE, found {self.choices!r}")

    def __call__(self, response: str, answer: str) -> Verdict:
        gold = self._letter(_gold(answer), whole=False)
        if not gold:
            return _verdict("undecided", "", None, f"the gold answer {_shown(answer)!r} is none of {self.choices}")
        found = explicit_answer(response) or phrase_answer(response)
        text = found.text if found else _last_line(response)
        letter = self._letter(text, whole=found is None)
        if not letter:
            return _verdict("wrong", text if found else "", found, f"none of {self.choices} stands as the final answer")
        return _verdict("right" if letter == gold else "wrong", letter, found, "compared as a choice")

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
    version: ClassVar[str] = "1"
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
            return _verdict("wrong", "", None, "the pattern does not match")
        match = last[0]
        text = next((group for group in match.groups() if group is not None), match.group())
        # A match that ends with the text might have gone on.
        found = Found(text.strip(), "pattern", closed=match.end() < len(response))
        if self.compare == "text":
            same = _normalized(text, False) == _normalized(answer, False)
            return _verdict("right" if same else "wrong", text, found, "compared as text")
        read, gold = read_number(text, whole=True), read_number(_gold(answer), whole=True)
        if read.value is None or gold.value is None:
            judgement = "undecided" if read.digits or gold.value is None else "wrong"
            return _verdict(judgement, text, found, read.reason or gold.reason)
        return _by_number(read, gold, found)

    def final(self, text: str) -> bool:
        """Not before the end: a later match is the answer instead, and of `pattern` nothing is known."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Math:
    """The final answer is LaTeX: equal as text, else as a number, else by math-verify (computer algebra).

    What computer algebra could choke on is refused beforehand (undecided); what passes still needs the deadline of a
    pool, since this class has none. The first call that reaches math-verify imports it, which takes a second.
    """

    name: ClassVar[str] = "math"
    fallback_last_number: bool

    @property
    def version(self) -> str:
        libraries = ("math-verify", "latex2sympy2_extended", "sympy")
        return "1, " + ", ".join(f"{library} {importlib.metadata.version(library)}" for library in libraries)

    def __call__(self, response: str, answer: str) -> Verdict:
        found = explicit_answer(response) or phrase_answer(response)
        text = found.text if found else (last_number(response) or "") if self.fallback_last_number else ""
        gold_text = _gold(answer)
        if not text:
            return _verdict("wrong", "", found, "no final answer")
        if _same_text(text, gold_text):
            return _verdict("right", text, found, "the same text")
        read = read_number(text, whole=found is not None and found.kind != "phrase")
        gold = read_number(gold_text, whole=True)
        if same_number(read, gold):
            return _verdict("right", text, found, "compared as numbers")
        if _both_integers(read, gold):
            return _verdict("wrong", text, found, "compared as numbers")
        for what, expression in (("gold answer", gold_text), ("answer", text)):
            if danger := too_hard(expression):
                return _verdict("undecided", text, found, f"{what} refused: {danger}")
        # "72 (pieces of track)" is a plain number with words that would only confuse the algebra.
        plain_gold = gold_text if gold.value is None else gold.text.replace(",", "") + "\\%" * gold.percent
        judgement, reason = _by_algebra(gold=plain_gold, prediction=text)
        return _verdict(judgement, text, found, reason)

    def final(self, text: str) -> bool:
        """Not before the end: a later marker, phrase or number is the answer instead."""
        return False


def too_hard(expression: str) -> str:
    """Why computer algebra must not see an expression, "" if it may."""
    if len(expression) > MAX_ANSWER_CHARS:
        return f"{len(expression)} characters, more than {MAX_ANSWER_CHARS}"
    depth = deepest = 0
    for char in expression:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        return f"brackets {deepest} deep, more than {MAX_NESTING}"
    if re.search(r"[0-9]{5,}[)}\s]*!|!\s*[)}\s]*!", expression):
        return "a large factorial"
    if re.search(r"(?:\^|\*\*)\s*(?:[{(]\s*)*-?[0-9]{5,}", expression):
        return "a large exponent"
    if re.search(r"(?:\^|\*\*)\s*(?:[0-9A-Za-z]+|[{(][^{}()]*)\s*(?:\^|\*\*|!)", expression):
        return "a tower of exponents"
    if re.search(r"\\[dt]?binom[^A-Za-z]*?(?:\^|[0-9]{6})", expression):
        return "a large binomial"
    if re.search(r"[\0\ud800-\udfff]", expression):
        return "characters that are no text"
    return ""


def _by_algebra(*, gold: str, prediction: str) -> tuple[Literal["right", "wrong", "undecided"], str]:
    """math-verify with its own time limits off: they rely on signals; the pool's deadline replaces them.

    `verify(gold, target)` is not symmetric, hence keyword arguments only.
    """
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    # LaTeX extraction alone: math-verify's other one hands text to sympy's parse_expr, which evaluates it.
    config: Any = [LatexExtractionConfig()]
    parsed = []
    for text in (gold, prediction):
        try:
            boxed = "\\boxed{" + text.strip().rstrip(".").strip("$") + "}"
            found = parse(boxed, config, parsing_timeout=NO_LIMIT, raise_on_error=True)
        except Exception as error:  # noqa: BLE001 - whatever model text does to the library, the answer is "undecided"
            return "undecided", f"math-verify could not read {_shown(text)!r}: {type(error).__name__}"
        parsed.append([value for value in found if not isinstance(value, str)])
    if not parsed[1] and _only_words(prediction):
        return "wrong", "words where the gold answer has mathematics"
    if not parsed[0] or not parsed[1]:
        return "undecided", "math-verify could not read " + ("the answer" if parsed[0] else "the gold answer")
    try:
        same = verify(gold=parsed[0], target=parsed[1], timeout_seconds=NO_LIMIT, raise_on_error=True)
    except Exception as error:  # noqa: BLE001 - as above
        return "undecided", f"math-verify failed: {type(error).__name__}"
    return ("right" if same else "wrong"), "compared by math-verify"


def _both_integers(read: Reading, gold: Reading) -> bool:
    return all(r.value is not None and r.value.denominator == 1 and not r.percent for r in (read, gold))


def _only_words(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z\s.,'!?-]+", re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)) is not None


def _gold(answer: str) -> str:
    """A gold answer as it stands, or what its marker holds (GSM8K's worked solutions end in `#### 18`)."""
    found = explicit_answer(answer)
    return found.text if found else answer.strip()


def _normalized(text: str, case_sensitive: bool) -> str:
    return normalized_text(text, case_sensitive=case_sensitive)


def _same_text(a: str, b: str) -> bool:
    return a.strip() != "" and " ".join(a.split()) == " ".join(b.split())


def _by_number(read: Reading, gold: Reading, found: Found | None) -> Verdict:
    return _verdict("right" if same_number(read, gold) else "wrong", read.text, found, "compared as numbers")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _shown(text: str) -> str:
    """Model text that can be stored and printed: short, valid Unicode, no NUL."""
    text = text if len(text) <= MAX_EXTRACTED_CHARS else text[: MAX_EXTRACTED_CHARS - 1] + "…"
    return text.encode("utf-8", errors="replace").decode("utf-8").replace("\0", "")


def _verdict(
    judgement: Literal["right", "wrong", "undecided"], extracted: str, found: Found | None, reason: str
) -> Verdict:
    explicit = found is not None and found.explicit
    return Verdict(judgement=Judgement(judgement), extracted=_shown(extracted), explicit=explicit, reason=reason)
