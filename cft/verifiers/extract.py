"""Where the final answer is in a text: plain Python, linear in the text.

An explicit marker is `\\boxed{x}` (or `\\fbox`, `\\framebox`), `#### x` to the end of its line, or `<answer>x</answer>`; the
last one in the text counts. After that comes the phrase "answer is x" (also "answer: x", "answer = x"). A text without
either may end in a formula (`last_formulas`), or in a number that is not a part of some expression (`is_part`).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from cft.verifiers.numbers import MAX_ANSWER_CHARS

MAX_REST_CHARS = 4096
MAX_FORMULAS = 8  # of a list of formulas
MAX_BOXES = 8  # of an answer that is spread over several


@dataclass(frozen=True, slots=True)
class Found:
    """A final answer as it is in the text.

    kind: "boxed", "####", "<answer>", "phrase", or "pattern" for a verifier's own.
    closed: more text cannot make it another answer: the brace or tag is closed, the line or the sentence has gone on.
    """

    text: str
    kind: str
    closed: bool

    @property
    def explicit(self) -> bool:
        return self.closed and self.kind in ("boxed", "####", "<answer>", "pattern")


_BRACES = re.compile(r"\\(?:boxed|fbox|framebox(?:\[[^\[\]{}]{0,20}\]){0,2})\s{0,8}\{|\\[\\{}]|[{}]")
_ANSWER_TAG = re.compile(r"<answer>((?:(?!</?answer>)[^\0])*)</answer>", re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*([^\n]*)(\n?)")
# A heading in Markdown ("#### 2. Add the costs", "#### Step 2") is no answer.
_HEADING = re.compile(r"(?:[0-9]{1,3}[.)]|step|part|case|note|solution)\s+\S", re.IGNORECASE)
_PHRASE = re.compile(r"\banswer\b[ \t*_]{0,8}(?:is\b|:|=)[ \t*_]{0,8}(?:is\b|:|=)?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)")


_DOLLARS = re.compile(r"(?<!\\)\$\$?")
_BETWEEN_FORMULAS = re.compile(r"\s*(?:[,;]|,?\s*(?:and|or))\s*")
_BETWEEN_BOXES = re.compile(
    r"[\s$]{0,9}(?:[,;]|,?\s{0,9}(?:\\(?:text|mbox)\s?\{\s?)?(?:and|or)(?:\s?\})?)[\s$]{0,9}(?:[A-Za-z](?:_\{?\w{1,3}\}?)?\s{0,9}=[\s$]{0,9})?"
)
_TEXT_COMMAND = re.compile(
    r"\\(?:begin|end)\s*\{[^{}]*\}(?:\s*\{[lcr| ]*\})?|\\(?:text\w*|mathrm|mbox|operatorname)\s*\{[^{}]*\}"
)
_PROSE = re.compile(
    r"(?<![\\A-Za-z])(?!sin|cos|tan|log|exp|max|min)[A-Za-z]{3,}|\s(?:a|an|and|at|by|if|in|is|of|on|or|so|to|we)\s"
)
_NO_OPERATOR = "text|math|mbox|approx|quad|qquad|Rightarrow|rightarrow|implies|therefore|boxed|fbox|left|right|bf|rm"
_TOUCHES_BEFORE = re.compile(
    r"(?:[\^_/+<>≤≥±]|(?<!\*)\*|(?:[0-9)}\]]|(?<![A-Za-z\\])[A-Za-z])\s*-|\S[ ]+-[ ]|[0-9](?::|,\s*\\!)|(?<![A-Za-z\\])[A-Za-z]"
    rf"|\\(?!(?:{_NO_OPERATOR})[a-z]*)[A-Za-z]+\s*(?:\{{[^{{}}]*\}}\s*)?\{{?|\}}\s*\{{)\s*$"
)
_TOUCHES_AFTER = re.compile(
    r"(?:a|\s?[bceiknpqrtuvwxyz])(?![A-Za-z])|\s*(?:[\^_!}+<>≤≥±]|\*(?!\*)|/|-\s*(?:[0-9(\\]|[A-Za-z](?![A-Za-z]))"
    rf"|\\(?!(?:{_NO_OPERATOR})[a-z]*)[A-Za-z])"
)
_TEXT_FONT = re.compile(r"\\(?:text\w*|math(?:rm|bf))\s*\{([^{}]*)\}")
_LETTERS = r"\(?[A-Z]\)?(?:\s*(?:[,/&]|,?\s*\b(?:or|and)\b)\s*\(?[A-Z]\)?)*(?![A-Za-z'’])"
_CHOICE_IS = re.compile(
    r"\b(?:correct|right|best)\s+(?:option|choice)\s*(?:is\b|:)[\s*:]{0,8}(?P<choice>[^\n]{1,80}?)[\s*]{0,8}[.!]?\s*$",
    re.IGNORECASE,
)
_IS_CORRECT = re.compile(
    rf"(?:^|[\s,:*])(?P<choice>{_LETTERS})\*{{0,2}}\s+(?:is|are)\s+(?:the\s+)?(?:correct|right)\b(?!\s+(?:if|only|when))"
)
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s+(?=[^{\s$])|(?=[-+]?(?:[0-9(]|\\[A-Za-z])))([^$\n]*)")


def boxed_answer(text: str) -> str:
    r"""What the last `\boxed{}` of a text holds, or `\boxed5` up to the end of its formula; "" without one."""
    found = _last_boxed(text) or _last_bare_box(text)
    return found[1].text if found else ""


def explicit_answer(text: str) -> Found | None:
    """The last explicit marker that holds something, or None."""
    candidates = [found for found in (_last_boxed(text), _last_hashes(text), _last_tag(text)) if found]
    candidates = candidates or [found for found in (_last_bare_box(text),) if found]
    return max(candidates, key=lambda pair: pair[0])[1] if candidates else None


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def first_answer_end(text: str) -> int | None:
    """Length of the shortest prefix in which `explicit_answer` is closed: there the first answer is complete. Or None.

    Which prefix that is does not depend on what follows it. Inside an answer line that is still open, a box counts
    (`#### \\boxed{5}`) and one around the line's start does not (`\\boxed{#### 5}`): the line opened last and is still open.
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


def last_formulas(text: str) -> tuple[str, str] | None:
    """(the formulas in dollars or brackets that end a text, as a list: "a=2, b=3"; what follows them), or None.

    Dollars of money are none: "from $5 to $7", "$5 and some $". Words may follow a formula (`$5$ apples in all`).
    """
    text = text[-MAX_REST_CHARS:]
    found: list[str] = []
    rest = ""
    while (span := _last_formula(text)) and len(found) < MAX_FORMULAS:
        start, inside, until, end = span
        if found and not _BETWEEN_FORMULAS.fullmatch(text, end):
            break
        if not found:
            rest = text[end:]
        found.append(text[inside:until].strip().rstrip(".,;").strip())
        text = text[:start]
    return (", ".join(reversed(found)), rest) if found else None


def is_part(text: str, start: int, end: int) -> bool:
    """Whether the number at text[start:end] is part of an expression: an operator, a command or a letter touches it."""
    before, after = text[max(0, start - MAX_ANSWER_CHARS) : start], text[end : end + MAX_ANSWER_CHARS]
    in_brackets = re.search(r",\s*$", before) and re.match(r"\s*[)\]]", after)  # (3, 2, 4)
    return bool(in_brackets or _TOUCHES_BEFORE.search(before) or _TOUCHES_AFTER.match(after))


def _last_formula(text: str) -> _Marker | None:
    r"""The last `$x$`, `$$x$$`, `\(x\)` or `\[x\]` whose inside reads as mathematics."""
    best: _Marker | None = None
    for opening, closing in (("\\[", "\\]"), ("\\(", "\\)")):
        until = text.rfind(closing)
        start = text.rfind(opening, 0, max(until, 0))
        if start >= 0 and (best is None or until + 2 > best.end):
            best = _Marker(start, start + 2, until, until + 2)
    dollars = deque(_DOLLARS.finditer(text), maxlen=2)
    if len(dollars) == 2 and (best is None or dollars[1].end() > best.end):
        first, second = dollars
        if first.group() != second.group() or re.match("[0-9]", text[second.end() :]):
            return None
        best = _Marker(first.start(), first.end(), second.start(), second.end())
    if best is None:
        return None
    inside = _TEXT_COMMAND.sub("", text[best.inside : best.until])
    return best if text[best.inside : best.until].strip(" .,;\n") and not _PROSE.search(inside) else None


def stated_choice(line: str) -> str:
    """What a line says to be chosen without the word "answer": "The correct option is B.", "Therefore, B is correct."; else
    ""."""
    match = _CHOICE_IS.search(line) or _IS_CORRECT.search(line)
    return match.group("choice").strip(" *") if match else ""


def several_choices(text: str) -> frozenset[str]:
    """The capital letters of a text that names more than one and nothing else: "A or B", "(A), (C)"; empty otherwise."""
    plain = _TEXT_FONT.sub(r"\1", text[:MAX_ANSWER_CHARS]).strip(" $*.")
    match = re.match(
        rf"(?:either|both)?\s*(?:options?|choices?)?\s*(?P<list>{_LETTERS})\s*(?:$|[.;]|\b(?:because|since)\b)", plain
    )
    named = frozenset(re.findall(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", match["list"])) if match else frozenset()
    return named if len(named) > 1 else frozenset()


def rest_after_phrase(text: str) -> str:
    """All that follows the last "answer is", over the ends of sentences, "" without one."""
    matches = deque(_PHRASE.finditer(text), maxlen=1)
    return text[matches[0].end() :].strip()[:MAX_REST_CHARS] if matches else ""


class _Marker(NamedTuple):
    """A closed box or tag: text[start:end], with text[inside:until] in it."""

    start: int
    inside: int
    until: int
    end: int


def _closed_boxes(text: str) -> Iterator[_Marker]:
    """Closed boxes, empty ones too, in the order in which they close: one pass, whatever the nesting."""
    if not any(box in text for box in ("\\boxed", "\\fbox", "\\framebox")):
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
    boxes: deque[_Marker] = deque(maxlen=MAX_BOXES)
    for box in _closed_boxes(text):
        # In this order: whatever the nesting, no part of the text is copied more than twice.
        if (not boxes or box.start > boxes[-1].start) and text[box.inside : box.until].strip():
            boxes.append(box)
    if not boxes:
        return None
    best = boxes.pop()
    parts, start = [text[best.inside : best.until].strip()], best.start
    # `\boxed{1}` or `\boxed{-2}` is one answer in two boxes.
    while boxes and boxes[-1].end <= start and _BETWEEN_BOXES.fullmatch(text, boxes[-1].end, start):
        box = boxes.pop()
        parts, start = [text[box.inside : box.until].strip(), *parts], box.start
    return best.start, Found(", ".join(dict.fromkeys(parts)), "boxed", closed=True)


def _last_bare_box(text: str) -> tuple[int, Found] | None:
    r"""`\boxed 5` or `\boxed\frac12` without braces, as in some worked solutions. Never closed: TeX would box the 5 alone."""
    matches = deque(_BARE_BOX.finditer(text), maxlen=1)
    content = matches[0].group(1).strip().rstrip(".,;") if matches else ""
    return (matches[0].start(), Found(content, "boxed", closed=False)) if content else None


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
