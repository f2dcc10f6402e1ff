"""Raw rows to problems: every row that cannot be used is quarantined with its place and reason, and a budget is kept.

A source yields `Row`s (a JSON object or the reason why there is none). `to_problems` reads the fields; `Quarantine`
counts what was skipped by reason, names the first of each, and fails the run when there are too many of them.
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

SHOWN = 5  # offenders named in a message


class ProblemError(UserError, ValueError):
    """A source of problems cannot be used as configured; the message names the place and the remedy."""


class BadRow(ValueError):
    """One row cannot be used; the message is the reason, without the place."""


class Number(str):
    """A JSON number, kept as it was spelt: 1.10 stays 1.10, and 5,000 digits are no error."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Row:
    """place: where it is, for people (`train.jsonl:17`). value: None = unreadable, and `reason` says why."""

    place: str
    value: Mapping[str, Any] | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields make a problem: a name, a path (`answer.value`, `answers.0`) or a template (`{Body} {Question}`).

    In a template {{ means {. id "": a hash of the texts of the other fields. solution "": the source has none.
    answer_of: makes the gold answer of the field's text; raises BadRow.
    """

    id: str
    question: str
    answer: str
    solution: str
    answer_of: Callable[[str], str] = str.strip


@dataclass(slots=True)
class Quarantine:
    """Rows skipped while one source is read. remedy: what a reader of the message can do about them. key: that sets
    the limit."""

    source: str
    max_bad_rows: float
    remedy: str = "Repair them, set the field names (data.*_field), or raise the limit"
    key: str = "data.max_bad_rows"
    counts: Counter[str] = field(default_factory=Counter)
    offenders: list[tuple[str, str, bool]] = field(default_factory=list)  # place, reason, whether the first of its kind

    def add(self, row: Row, *, reason: str) -> None:
        """The reason up to its first colon is its kind."""
        kind = reason.partition(":")[0]
        first = kind not in self.counts
        self.counts[kind] += 1
        if first or len(self.offenders) < SHOWN:
            self.offenders.append((row.place, reason, first))

    def report(self, *, rows: int) -> None:
        """Fail if the rows skipped are over the budget, else warn of them. rows: how many were read."""
        bad = sum(self.counts.values())
        if rows == 0:
            raise ProblemError(
                f"{self.source} holds no rows; expected one JSON object a line (or row) with the data fields"
            )
        if bad == 0:
            return
        kinds = [f"{count} {kind}" for kind, count in self.counts.most_common()]
        by_kind = f": {', '.join(kinds)}" if len(kinds) > 1 else ""
        found = f"{self.source}: {bad} of {rows} rows cannot be used{by_kind}. First: {self._shown()}"
        if bad > self.max_bad_rows * rows:
            allowed = f"That is {bad / rows:.2%}, and at most {self.max_bad_rows:.2%} may be skipped ({self.key})"
            raise ProblemError(f"{found}. {allowed}. {self.remedy}.")
        warnings.warn(f"{found}. They were skipped.", stacklevel=2)

    def _shown(self) -> str:
        """The first of each kind, then the first of all, up to SHOWN of them, in the order of the source."""
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
    """(problems in the order of the rows, reason -> number of rows skipped)."""
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
    """The text of a field, a dotted path or a template. numbers: a JSON number is as good as a text. Raises BadRow."""
    if "{" not in name and "}" not in name:
        return _non_empty(_text(row, name, numbers=numbers), name)
    parts = template_parts(name)
    text = "".join(before + (_text(row, inner, numbers=True) if inner else "") for before, inner in parts)
    return _non_empty(text, name)


def template_parts(name: str) -> list[tuple[str, str]]:
    """[(literal text, field after it or "")] of a template. Raises ProblemError where it is none."""
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
    """Two questions that differ only in case, spaces, composition or typographic quotes are one question."""
    text = unicodedata.normalize("NFC", question).casefold()
    return " ".join(text.translate(_QUOTES).split())


_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})


def json_lines(path: Path) -> Iterator[Row]:
    """The lines of a JSONL file; blank ones are no rows. Lines end at line feeds only."""
    with path.open("rb") as handle:
        if kind := _other_format(handle.read(4096)):
            raise ProblemError(f"{path} is {kind}; expected one JSON object a line, in UTF-8. {_CONVERT}")
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
    """What a file is that holds no JSON lines, by its first bytes; "" where they may be some."""
    for begins, kind in _STARTS.items():
        if start.startswith(begins):
            return kind
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"[" and text[1:].lstrip()[:1] in (b"{", b""):
        return "one JSON array, not a line a row"
    lines = [line.strip() for line in text.splitlines()[:4] if line.strip()]
    if len(lines) > 1 and lines[0] == b"{" and lines[1].startswith(b'"'):
        return "one JSON object over several lines, not a line a row"
    if len(lines) > 1 and not any(line[:1] in b"{[" for line in lines) and any(mark in lines[0] for mark in b",;\t"):
        return "no JSON, as its lines begin, but perhaps CSV"
    if len(start) > 3 and start[1::2].count(0) > len(start) // 4:
        return "text in UTF-16 without a mark"
    return ""


def _parse(line: bytes, *, place: str) -> Row:
    try:
        value = json.loads(line.decode(), parse_float=Number, parse_int=Number)
    except UnicodeDecodeError as error:
        return Row(place, None, f"not UTF-8: byte {error.start} of the line")
    except json.JSONDecodeError as error:
        return Row(place, None, f"malformed JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return Row(place, None, "malformed JSON: nested too deep")
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
        raise BadRow(f"lone surrogate: {name} is no valid Unicode") from None
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
