"""Where the final answer stands in a text: plain Python, linear in the text.

An explicit marker is `\\boxed{x}` (or `\\fbox`), `#### x` to the end of its line, or `<answer>x</answer>`; the last one
in the text counts. After that comes the phrase "answer is x" (also "answer: x", "answer = x").
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from cft.judging.answers import MAX_ANSWER_CHARS

MAX_REST_CHARS = 4096


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


_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s+([^{\s$][^$\n]*)")


def boxed_answer(text: str) -> str:
    r"""What the last `\boxed{}` of a text holds, or `\boxed 5` up to the end of its formula; "" without one."""
    found = _last_boxed(text) or _last_bare_box(text)
    return found[1].text if found else ""


def explicit_answer(text: str) -> Found | None:
    """The last explicit marker that holds something, or None."""
    candidates = [found for found in (_last_boxed(text), _last_hashes(text), _last_tag(text)) if found]
    candidates = candidates or [found for found in (_last_bare_box(text),) if found]
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


def _last_bare_box(text: str) -> tuple[int, Found] | None:
    r"""`\boxed 5` without braces, as some worked solutions have it. Never closed: what TeX would box is the 5 alone."""
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
