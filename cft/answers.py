"""Where the final answer stands in a text, and what number it is: plain Python, linear in the text, exact.

An explicit marker is `\\boxed{x}` (or `\\fbox`), `#### x` to the end of its line, or `<answer>x</answer>`; the last one
in the text counts. After that comes the phrase "answer is x" (also "answer: x", "answer = x").
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

MAX_ANSWER_CHARS = 512  # a longer final answer is not parsed
MAX_DIGITS = 1000  # a longer run of digits is compared as text only
MAX_EXPONENT = 999  # of 1e3 and the like


@dataclass(frozen=True, slots=True)
class Found:
    """A final answer as it stands in the text.

    kind: "boxed", "####", "<answer>", "phrase", or "pattern" for a verifier's own.
    closed: more text cannot make it another answer: the brace or tag is closed, the line or the sentence has gone on.
    """

    text: str
    kind: str
    closed: bool

    @property
    def explicit(self) -> bool:
        return self.closed and self.kind in ("boxed", "####", "<answer>", "pattern")


_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{|\\[\\{}]|[{}]")
_ANSWER_TAG = re.compile(r"<answer>((?:(?!</?answer>)[^\0])*)</answer>", re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*([^\n]*)(\n?)")
# A heading in Markdown ("#### 2. Add the costs", "#### Step 2") is no answer.
_HEADING = re.compile(r"(?:[0-9]{1,3}[.)]|step|part|case|note|solution)\s+\S", re.IGNORECASE)
_PHRASE = re.compile(r"\banswer\b[ \t*_]{0,8}(?:is\b|:|=)[ \t*_]{0,8}(?:is\b|:|=)?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)")


def explicit_answer(text: str) -> Found | None:
    """The last explicit marker that holds something, or None."""
    candidates = [found for found in (_last_boxed(text), _last_hashes(text), _last_tag(text)) if found]
    return max(candidates, key=lambda pair: pair[0])[1] if candidates else None


def first_answer_end(text: str) -> int | None:
    """Length of the shortest prefix in which `explicit_answer` is closed: there the first answer is complete. Or None.

    Which prefix that is does not depend on what follows it. Inside an answer line that is still open, a box counts
    (`#### \\boxed{5}`) and one around the line's start does not (`\\boxed{#### 5}`): the line opened last and goes on.
    """
    # Of such lines the first alone matters: where it is closed, an answer is complete.
    line = next((match for match in _HASHES.finditer(text) if _line_answer(match)), None)
    line_start, line_end = line.span() if line else (len(text), len(text))
    ends = [line_end] if line and line.group(2) else []
    for markers in (_closed_boxes(text), _closed_tags(text)):
        for marker in markers:
            apart = marker.end <= line_start or marker.start > line_start
            if apart and text[marker.inside : marker.until].strip():
                ends.append(marker.end)
                break
    return min(ends, default=None)


def phrase_answer(text: str) -> Found | None:
    """What follows the last "answer is", up to the end of its sentence, or None."""
    for match in reversed(list(_PHRASE.finditer(text))):
        tail = text[match.end() : match.end() + MAX_ANSWER_CHARS]
        end = _SENTENCE_END.search(tail)
        content = tail[: end.start()] if end else tail
        if content.strip():
            return Found(content.strip(), "phrase", end is not None and end.group() == "\n")
    return None


class _Marker(NamedTuple):
    """A closed box or tag: text[start:end], with text[inside:until] in it."""

    start: int
    inside: int
    until: int
    end: int


def _closed_boxes(text: str) -> Iterator[_Marker]:
    """Closed boxes, empty ones too, in the order in which they close: one pass, whatever the nesting."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return
    open_braces: list[re.Match[str]] = []
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            opened = open_braces.pop() if open_braces else None
            if opened is not None and len(opened.group()) > 1:
                yield _Marker(opened.start(), opened.end(), match.start(), match.end())
        elif token[-1] == "{" and token != "\\{":
            open_braces.append(match)


def _closed_tags(text: str) -> Iterator[_Marker]:
    for match in _ANSWER_TAG.finditer(text):
        yield _Marker(match.start(), match.start(1), match.end(1), match.end())


def _last_boxed(text: str) -> tuple[int, Found] | None:
    """The closed box that opens last (the inner one of nested boxes)."""
    best: _Marker | None = None
    for box in _closed_boxes(text):
        # In this order: whatever the nesting, no part of the text is copied more than twice.
        if (best is None or box.start > best.start) and text[box.inside : box.until].strip():
            best = box
    if best is None:
        return None
    return best.start, Found(text[best.inside : best.until].strip(), "boxed", closed=True)


def _last_hashes(text: str) -> tuple[int, Found] | None:
    for match in reversed(list(_HASHES.finditer(text))):
        if content := _line_answer(match):
            return match.start(), Found(content, "####", closed=bool(match.group(2)))
    return None


def _line_answer(match: re.Match[str]) -> str:
    """What a line of `####` answers, "" where it is empty or a heading."""
    content = match.group(1).strip()
    return "" if _HEADING.match(content) else content


def _last_tag(text: str) -> tuple[int, Found] | None:
    for tag in reversed(list(_closed_tags(text))):
        if content := text[tag.inside : tag.until].strip():
            return tag.start, Found(content, "<answer>", closed=True)
    return None


# --- numbers ---------------------------------------------------------------------------------------------------------

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_UNSIGNED = (
    rf"(?:[0-9]+ [0-9]+/[0-9]+"  # 1 1/2
    rf"|{_DIGITS}(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{{1,3}}(?![0-9A-Za-z]))?(?:/[0-9]+(?:\.[0-9]+)?)?"
    rf"|(?<![0-9])\.[0-9]+)"
)
_NUMBER = re.compile(rf"(?P<sign>(?:(?<![0-9A-Za-z)\]}}])[-+]\$?)?){_UNSIGNED}")
_LEADING = re.compile(rf"[$€£¥(\[\s]*(?P<number>{_NUMBER.pattern})")
# Plain words, %, and simple powers of units may follow a number; operators and further digits may not.
_UNIT = re.compile(r"[\s%°$€£¥(]*(?:[A-Za-z][A-Za-z\s.'/()%$-]*(?:\^?\{?[23²³]\}?)?)?[\s.,;:)\]%]*")
_OPERATOR = re.compile(r"\s*(?:[*^+!=<>×·÷\\_{]|[-/]\s*[0-9(\\])")

_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|textit|operatorname)\s*\{([^{}]*)\}")
_FRAC = re.compile(r"(?P<whole>[0-9]*)\s*\\[dt]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|([0-9])\s*([0-9]))")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|\\q?quad|~")
_INEQUALITY = re.compile(r"[<>≤≥≠]|\\(?:le|ge|lt|gt|ne)q?\b|!=")
_WORDS_THEN_NUMBER = re.compile(rf"[A-Za-z\s.,;:'\"()$%-]*?(?P<number>{_NUMBER.pattern})")
_FUNCTION = re.compile(r"\b(?:log|ln|exp|sqrt|root|sin|cos|tan|sec|csc|cot|arc\w*|mod|gcd|lcm|not)\b", re.IGNORECASE)
_VARIABLE = re.compile(r"\s?[abceiknpqrtuvwxyz](?:\^|[\s.,;)\]]*$)")  # 3x, not 3 m or 3 km
_EXPLAINED = re.compile(r"[=≈]|\\approx|(?<=[A-Za-z]):")


def tidy(text: str) -> str:
    """A LaTeX answer as plain text where that is possible: \\text, \\frac, thousands, currency, math signs."""
    text = text.replace("\u2212", "-").replace("\u00a0", " ").replace("\u202f", " ").replace("\u2009", " ")
    text = text.replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"(?<=[0-9])\\[,!; ](?=[0-9]{3})|(?<=,)\\!(?=[0-9]{3})", "", text)
    text = _LATEX_TEXT.sub(r" \1", text)
    text = re.sub(r"\\[()\[\]]|\*\*|__|\\left|\\right|\^\s*\{?\s*\\circ\s*\}?|\\displaystyle", "", text)
    text = _LATEX_SPACE.sub(" ", text)
    text = _FRAC.sub(_plain_fraction, text)
    return text.strip().strip("$").strip()


def _plain_fraction(match: re.Match[str]) -> str:
    above, below = (match.group(2), match.group(3)) if match.group(2) is not None else (match.group(4), match.group(5))
    if not (above.strip().isdecimal() and below.strip().isdecimal()):
        return match.group()
    fraction = f"{above.strip()}/{below.strip()}"
    return f"{match.group('whole')} {fraction}" if match.group("whole") else fraction


@dataclass(frozen=True, slots=True)
class Reading:
    """A text read as a number: the exact value with its text, or None with the reason.

    digits: a digit stands there, so that "no number at all" is not what the text says.
    """

    value: Fraction | None
    text: str
    percent: bool
    digits: bool
    reason: str


def read_number(text: str, *, whole: bool) -> Reading:
    """The number that a final answer states.

    whole: nothing but the number, words and a unit may stand there (a box); else further numbers may follow it.
    Text such as `2^{3}` or `5!` is found to hold digits, without a value: only computer algebra can tell.
    """
    if len(text) > MAX_ANSWER_CHARS:
        reason = f"the answer has {len(text)} characters, more than {MAX_ANSWER_CHARS}"
        return Reading(None, "", False, _has_digit(text), reason)
    plain = tidy(text)
    match, part = _LEADING.match(plain), plain
    if (match is None or _OPERATOR.match(plain, match.end())) and not _INEQUALITY.search(plain):
        # "x = 5", "2 + 3 = 5" and "Total: 5" state the number behind the last sign.
        part = _EXPLAINED.split(plain)[-1].strip()
        match = _LEADING.match(part) or _only_number(part)
    if match is None:
        return Reading(None, "", False, _has_digit(plain), "no plain number stands in the answer")
    number, rest = match.group("number"), part[match.end() :]
    if _OPERATOR.match(rest) or (whole and _VARIABLE.match(rest)):
        return Reading(None, "", False, True, "the answer is an expression, not a plain number")
    if whole and not _UNIT.fullmatch(rest):
        return Reading(None, "", False, True, "more than a number and its unit stands in the answer")
    value = as_fraction(number)
    reason = "a division by zero, or too many digits" if value is None else ""
    return Reading(value, number, rest.lstrip().startswith("%"), True, reason)


def _only_number(text: str) -> re.Match[str] | None:
    """`about 12`: the one number of a text that has nothing but words and punctuation around it."""
    if _FUNCTION.search(text):
        return None
    matches = list(_WORDS_THEN_NUMBER.finditer(text))
    return matches[0] if len(matches) == 1 and matches[0].start() == 0 else None


def same_number(a: Reading, b: Reading) -> bool:
    """Equal exact values. Where one side alone has a percent sign, 50% equals 50 and 0.5 alike."""
    if a.value is None or b.value is None:
        return False
    if a.value == b.value:
        return True
    if a.percent == b.percent:
        return False
    return (a.value / 100 if a.percent else a.value) == (b.value / 100 if b.percent else b.value)


def last_number(text: str) -> str | None:
    """The last number that stands in a text, as it stands there."""
    last = deque(_NUMBER.finditer(text.replace("\u2212", "-")), maxlen=1)
    return last[0].group() if last else None


def as_fraction(number: str) -> Fraction | None:
    """Exact value of `1,234.5`, `-3/4`, `1 1/2`, `2e3`; None when not defined (x/0) or beyond the caps."""
    number = number.replace(",", "").replace("$", "").lstrip("+")
    sign = -1 if number.startswith("-") else 1
    number = number.lstrip("-")
    if any(len(run) > MAX_DIGITS for run in re.findall(r"[0-9]+", number)):
        return None
    mixed, _, fraction = number.rpartition(" ")
    above, _, below = fraction.partition("/")
    exponent = re.search(r"[eE]([-+]?[0-9]+)$", above)
    if exponent and abs(int(exponent.group(1))) > MAX_EXPONENT:
        return None
    divisor = Fraction(below) if below else Fraction(1)
    if divisor == 0:
        return None
    return sign * (Fraction(mixed or 0) + Fraction(above) / divisor)


def normalized_text(text: str, *, case_sensitive: bool) -> str:
    """Space collapsed, wrapping signs and a trailing full stop dropped."""
    text = tidy(text) if len(text) <= MAX_ANSWER_CHARS else text  # tidying takes quadratic time
    text = " ".join(text.split()).rstrip(".").strip()
    return text if case_sensitive else text.casefold()


def canonical(answer: str) -> Hashable:
    """What two equal answers share: the exact number where it is one, else the normalised text."""
    value = read_number(answer, whole=True).value
    return normalized_text(answer[:MAX_ANSWER_CHARS], case_sensitive=False) if value is None else value


def _has_digit(text: str) -> bool:
    return re.search(r"[0-9]", text) is not None
