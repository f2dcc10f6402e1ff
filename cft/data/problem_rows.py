"""Converts raw rows to problems. Unusable rows are quarantined with their place and reason, up to a limit.

A source yields `Row`s (a JSON object, or the reason why there is none). `to_problems` reads the fields. `Quarantine` counts
skipped rows by reason, names the first of each, and fails the run if there are too many.
"""

from __future__ import annotations

import hashlib
import json
import math
import string
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cft.errors import UserError
from cft.types import Problem

SHOWN = 5  # unusable rows named in a message


class ProblemError(UserError, ValueError):
    """A source of problems cannot be used as configured; the message names the place and the remedy."""


class BadRow(ValueError):
    """One row cannot be used; the message is the reason, without the place."""


class Number(str):
    """A JSON number with its original spelling: 1.10 remains 1.10, and 5,000 digits are no error."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A raw row.

    Args:
        place: location for messages (`train.jsonl:17`).
        value: the JSON object; None if it is unreadable.
        reason: why it is unreadable.
    """

    place: str
    value: Mapping[str, Any] | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a problem, each as a name, a path (`answer.value`, `answers.0`) or a template (`{Body} {Question}`).

    In a template, {{ stands for {.

    Args:
        id: field of the id; "" = a hash of the other fields' texts.
        question: field of the question.
        answer: field of the answer.
        solution: field of the solution; "" = none.
        answer_of: extracts the gold answer from the answer field's text; raises BadRow.
    """

    id: str
    question: str
    answer: str
    solution: str
    answer_of: Callable[[str], str] = str.strip


@dataclass(slots=True)
class Quarantine:
    """The rows of a source that were skipped.

    Args:
        source: name of the source.
        max_bad_rows: fraction of the rows that may be skipped, 0 to 1.
        remedy: what the user can do, for the message.
        key: config key of the limit.
        counts: number of skipped rows by kind of reason.
        offenders: (place, reason, whether it is the first of its kind) of some of them.
    """

    source: str
    max_bad_rows: float
    remedy: str = "Repair them, set the field names (data.*_field), or raise the limit"
    key: str = "data.max_bad_rows"
    counts: Counter[str] = field(default_factory=Counter)
    offenders: list[tuple[str, str, bool]] = field(default_factory=list)

    def add(self, row: Row, *, reason: str) -> None:
        """Add a skipped row. The part of `reason` before the first colon is its kind."""
        kind = reason.partition(":")[0]
        first = kind not in self.counts
        self.counts[kind] += 1
        if first or len(self.offenders) < SHOWN:
            self.offenders.append((row.place, reason, first))

    def report(self, *, rows: int) -> None:
        """Raise ProblemError if too many rows were skipped, else warn about them. rows: number of rows read."""
        if error := self.error(rows=rows):
            raise ProblemError(error)
        if self.counts:
            warnings.warn(f"{self._found(rows)}. They were skipped.", stacklevel=2)

    def error(self, *, rows: int) -> str:
        """Message if there are no rows, or too many were skipped; "" if neither."""
        bad = sum(self.counts.values())
        if rows == 0:
            return f"{self.source} holds no rows; expected one JSON object per line (or row) with the data fields"
        if bad <= self.max_bad_rows * rows:
            return ""
        allowed = f"That is {bad / rows:.2%}, and at most {self.max_bad_rows:.2%} may be skipped ({self.key})"
        return f"{self._found(rows)}. {allowed}. {self.remedy}."

    def _found(self, rows: int) -> str:
        bad = sum(self.counts.values())
        kinds = [f"{count} {kind}" for kind, count in self.counts.most_common()]
        by_kind = f": {', '.join(kinds)}" if len(kinds) > 1 else ""
        return f"{self.source}: {bad} of {rows} rows cannot be used{by_kind}. First: {self._shown()}"

    def _shown(self) -> str:
        """Up to SHOWN skipped rows in the order of the source: the first of each kind, then the first of the others."""
        first = [at for at, (_, _, first) in enumerate(self.offenders) if first][:SHOWN]
        others = [at for at in range(len(self.offenders)) if at not in first]
        places: dict[str, list[str]] = {}  # reason -> where
        for at in sorted([*first, *others[: SHOWN - len(first)]]):
            place, reason, _ = self.offenders[at]
            places.setdefault(reason, []).append(place)
        return "; ".join(f"{', '.join(where)}: {reason}" for reason, where in places.items())


def to_problems(
    rows: Iterable[Row], *, source: str, fields: Fields, id_prefix: str, max_bad_rows: float
) -> tuple[list[Problem], Counter[str]]:
    """(problems in the order of the rows, reason -> number of skipped rows). Raises ProblemError if too many are skipped."""
    for name in (fields.id, fields.question, fields.answer, fields.solution):
        template_parts(name)
    quarantine = Quarantine(source, max_bad_rows)
    problems: dict[str, Problem] = {}
    count = 0
    for row in rows:
        count += 1
        try:
            problem = _problem(row, fields=fields, id_prefix=id_prefix)
        except BadRow as error:
            quarantine.add(row, reason=str(error))
            continue
        if problem.id in problems:
            quarantine.add(row, reason=f"duplicate id: {_shorten(problem.id)}" if fields.id else "duplicate row")
            continue
        problems[problem.id] = problem
    quarantine.report(rows=count)
    return list(problems.values()), quarantine.counts


def _problem(row: Row, *, fields: Fields, id_prefix: str) -> Problem:
    if row.value is None:
        raise BadRow(row.reason)
    question = read_field(row.value, fields.question)
    answer = read_field(row.value, fields.answer, numbers=True)
    solution = read_field(row.value, fields.solution) if fields.solution else ""
    row_id = read_field(row.value, fields.id, numbers=True) if fields.id else content_hash(question, answer, solution)
    return Problem(id_prefix + row_id, question, fields.answer_of(answer), solution, place=row.place)


def read_field(row: Mapping[str, Any], name: str, *, numbers: bool = False) -> str:
    """The text of a field, a dotted path or a template. numbers: whether to accept JSON numbers. Raises BadRow."""
    if "{" not in name and "}" not in name:
        return _non_empty(_text(row, name, numbers=numbers), name)
    parts = [
        (before, inner, _text(row, inner, numbers=True) if inner else "") for before, inner in template_parts(name)
    ]
    text = "".join(before + found for before, _, found in parts)
    # The space around an empty field, as of Alpaca's input, is not part of the text.
    return _non_empty(text.strip() if any(inner and not found for _, inner, found in parts) else text, name)


def has_field(row: Mapping[str, Any], name: str) -> bool:
    """Whether a row has the field, the path, or all fields of the template."""
    try:
        for _, inner in template_parts(name):
            if inner:
                _lookup(row, inner)
    except BadRow:
        return False
    return True


def template_parts(name: str) -> list[tuple[str, str]]:
    """[(literal text, field after it or "")] of a template. Raises ProblemError if it is malformed."""
    if "{" not in name and "}" not in name:
        return [("", name)]
    try:
        parts = [(text, inner, spec, conversion) for text, inner, spec, conversion in string.Formatter().parse(name)]
    except ValueError as error:
        raise ProblemError(f"field template {name!r}: {error}; expected e.g. '{{Body}} {{Question}}'") from None
    if any(spec or conversion or inner == "" for _, inner, spec, conversion in parts):
        raise ProblemError(
            f"field template {name!r}: expected plain field names in braces, e.g. '{{Body}} {{Question}}'"
        )
    return [(text, inner or "") for text, inner, _, _ in parts]


def content_hash(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode()).hexdigest()[:20]


def normalized(question: str) -> str:
    """The question without differences in case, white space, Unicode composition and typographic quotes."""
    text = unicodedata.normalize("NFC", question).casefold()
    return " ".join(text.translate(_QUOTES).split())


_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})


def json_lines(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file, without blank lines. Only line feeds end lines."""
    with path.open("rb") as handle:
        if kind := _other_format(handle.read(4096)):
            raise ProblemError(f"{path} is {kind}; expected one JSON object per line, in UTF-8. {_CONVERT}")
        handle.seek(0)
        for number, line in enumerate(handle, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _parse(line, place=f"{path.name}:{number}")


_CONVERT = (
    "Convert it, as in: python -c \"import datasets; datasets.load_dataset('json', data_files='FILE')['train']"
    ".to_json('out.jsonl')\" ('parquet' or 'csv' in place of 'json'; compressed files and arrays are read too)"
)
_STARTS = {
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"PK\x03\x04": "a zip archive",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow file",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"version https://git-lfs": "a Git LFS pointer, not the file it points to (git lfs pull)",
}


def _other_format(start: bytes) -> str:
    """The format of a file that is not JSONL, by its first bytes; "" if it may be JSONL."""
    for begins, kind in _STARTS.items():
        if start.startswith(begins):
            return kind
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"[" and text[1:].lstrip()[:1] in (b"{", b""):
        return "one JSON array, not one row per line"
    lines = [line.strip() for line in text.splitlines()[:4] if line.strip()]
    if len(lines) > 1 and lines[0] == b"{" and lines[1].startswith(b'"'):
        return "one JSON object over several lines, not one row per line"
    if len(lines) > 1 and not any(line[:1] in b"{[" for line in lines) and any(mark in lines[0] for mark in b",;\t"):
        return "not JSON, perhaps CSV"
    if len(start) > 3 and start[1::2].count(0) > len(start) // 4:
        return "text in UTF-16 without a byte order mark"
    return ""


def _parse(line: bytes, *, place: str) -> Row:
    try:
        value = json.loads(line.decode(), parse_float=Number, parse_int=Number)
    except UnicodeDecodeError as error:
        return Row(place, None, f"not UTF-8: byte {error.start} of the line")
    except json.JSONDecodeError as error:
        return Row(place, None, f"malformed JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return Row(place, None, "malformed JSON: nested too deeply")
    if not isinstance(value, dict):
        return Row(place, None, f"not an object: found {type(value).__name__}")
    return Row(place, value)


def _text(row: Mapping[str, Any], name: str, *, numbers: bool) -> str:
    value = _lookup(row, name)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        value = Number(value)
    if not isinstance(value, str) or (isinstance(value, Number) and not numbers):
        found = "number" if isinstance(value, Number) else "null" if value is None else type(value).__name__
        raise BadRow(f"wrong type: {name} is {found}, expected text" + (" or a number" if numbers else ""))
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"lone surrogate: {name} is not valid Unicode") from None
    return str(value)


def _lookup(row: Mapping[str, Any], name: str) -> Any:
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise BadRow(f"missing field: {name} ({fields_found(row)})")
    return value


def fields_found(row: Mapping[str, Any]) -> str:
    return f"the row has {_shorten(', '.join(map(str, row)))}"


def _non_empty(text: str, name: str) -> str:
    if not text.strip():
        raise BadRow(f"empty field: {name}")
    return text


def _shorten(text: str) -> str:
    return ascii(text)[1:-1] if len(text) <= 80 else ascii(text[:77])[1:-1] + "..."
