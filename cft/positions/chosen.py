"""Positions that depend on the response alone: all, those in spans, the most uncertain ones, every n-th."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cft.files import sha256_json
from cft.positions.base import Expected, PositionsError, ResponseView, Search, Wanted
from cft.ranges import AtLeastOne, Count, FractionAboveZero, require_in_range

SHOWN = 3  # entries named in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class All:
    """Every position, the end token included."""

    name: ClassVar[str] = "all"
    needs_entropy: ClassVar[bool] = False
    probes: ClassVar[bool] = False

    def settings(self) -> dict[str, Any]:
        return {}

    def search(self, view: ResponseView) -> Search:
        yield from ()
        return np.ones(len(view), dtype=np.bool_)

    def expected(self, view: ResponseView) -> Expected:
        return Expected(np.ones(len(view)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stride:
    """Every n-th position.

    Args:
        every: n, at least 1; 1 is every position.
        first: the first position to try, counted from 0, below `every`.
    """

    name: ClassVar[str] = "stride"
    needs_entropy: ClassVar[bool] = False
    probes: ClassVar[bool] = False

    every: AtLeastOne
    first: Count = 0

    def __post_init__(self) -> None:
        require_in_range(self)
        if self.first >= self.every:
            raise PositionsError(f"positions.first={self.first}: expected below positions.every={self.every}")

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "every": self.every, "first": self.first}

    def search(self, view: ResponseView) -> Search:
        yield from ()
        return np.arange(len(view)) % self.every == self.first

    def expected(self, view: ResponseView) -> Expected:
        return Expected((np.arange(len(view)) % self.every == self.first).astype(np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Positions whose characters overlap spans: matches of a pattern (default: numbers), or spans from a file. The end token
    covers no character and is not tried.

    Args:
        pattern: a regular expression, searched in the response's text; "" = only the file.
        file: JSON lines `{"id": problem id, "spans": [[start, end], ...]}`, characters of the response, end exclusive; "" =
            only the pattern. Responses that it does not name get no positions from it. For given responses only.

    Raises:
        PositionsError: neither is given, the pattern is not a regular expression, or the file is invalid.
    """

    name: ClassVar[str] = "spans"
    needs_entropy: ClassVar[bool] = False
    probes: ClassVar[bool] = False

    pattern: str
    file: str = ""
    of_problem: dict[str, list[tuple[int, int]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.pattern and not self.file:
            raise PositionsError("positions.pattern and positions.file: both are empty, expected one of them")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise PositionsError(f"positions.pattern: not a regular expression ({error}): {self.pattern!r}") from error
        object.__setattr__(self, "of_problem", _read_spans(self.file) if self.file else {})

    def require_named(self, problem_ids: Collection[str], *, data: str) -> None:
        """Raises PositionsError if the file names none of the problems."""
        if self.of_problem and not self.of_problem.keys() & set(problem_ids):
            theirs, ours = next(iter(self.of_problem)), next(iter(problem_ids), "")
            raise PositionsError(
                f"positions.file={self.file}: it names none of the problems of {data}; expected their ids, such as {ours!r}, "
                f"found {theirs!r}"
            )

    def settings(self) -> dict[str, Any]:
        named = {"spans": sha256_json(sorted(self.of_problem.items()))} if self.file else {}
        return {"name": self.name, "pattern": self.pattern, **named}

    def search(self, view: ResponseView) -> Search:
        yield from ()
        return self._inside(view)

    def expected(self, view: ResponseView) -> Expected:
        return Expected(self._inside(view).astype(np.float64))

    def _inside(self, view: ResponseView) -> Wanted:
        wanted = np.zeros(len(view), dtype=np.bool_)
        for start, end in self._spans(view):
            wanted |= (view.char_span[:, 0] < end) & (view.char_span[:, 1] > start)
        return wanted

    def _spans(self, view: ResponseView) -> Iterator[tuple[int, int]]:
        if self.pattern:
            yield from (found.span() for found in re.finditer(self.pattern, view.text))
        for start, end in self.of_problem.get(view.problem_id, ()):
            if end > len(view.text):
                raise PositionsError(
                    f"positions.file={self.file}: the span [{start}, {end}] of {view.problem_id!r} ends behind its response, "
                    f"which has {len(view.text)} characters; spans are of the response's text, end exclusive"
                )
            yield start, end


@dataclass(frozen=True, slots=True, kw_only=True)
class TopEntropy:
    """The positions of each response where the annotating model is most uncertain; ties by position.

    Args:
        fraction: of the response's positions, rounded up; null if `number` is given.
        number: positions per response; null if `fraction` is given. Shorter responses are tried whole.

    Raises:
        PositionsError: both or neither are given.
    """

    name: ClassVar[str] = "top_entropy"
    needs_entropy: ClassVar[bool] = True
    probes: ClassVar[bool] = False

    fraction: FractionAboveZero | None = None
    number: AtLeastOne | None = None

    def __post_init__(self) -> None:
        require_in_range(self)
        if (self.fraction is None) == (self.number is None):
            raise PositionsError(
                f"positions.fraction={self.fraction}, positions.number={self.number}: expected one of them, and null for "
                "the other"
            )

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "fraction": self.fraction, "number": self.number}

    def search(self, view: ResponseView) -> Search:
        yield from ()
        wanted = np.zeros(len(view), dtype=np.bool_)
        wanted[np.argsort(-view.entropy_R.astype(np.float64), kind="stable")[: self._count(len(view))]] = True
        return wanted

    def expected(self, view: ResponseView) -> Expected:
        return Expected(np.full(len(view), self._count(len(view)) / max(1, len(view))))

    def _count(self, length: int) -> int:
        if self.number is not None:
            return min(self.number, length)
        assert self.fraction is not None
        return int(np.ceil(self.fraction * length - 1e-9))


def _read_spans(file: str) -> dict[str, list[tuple[int, int]]]:
    path = Path(file).expanduser()
    if not path.is_file():
        raise PositionsError(f"positions.file={file}: no such file; expected JSON lines of id and spans")
    found: dict[str, list[tuple[int, int]]] = {}
    bad: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            spans = [(start, end) for start, end in entry["spans"]]
            if not all(type(start) is type(end) is int and 0 <= start < end for start, end in spans):
                raise ValueError(f"spans {entry['spans']} are no whole numbers with 0 <= start < end")
            found.setdefault(str(entry["id"]), []).extend(spans)
        except (ValueError, TypeError, KeyError) as error:
            bad.append(f"line {number}: {type(error).__name__}: {error}")
    if bad or not found:
        what = "; ".join(bad[:SHOWN]) or "it is empty"
        raise PositionsError(
            f'positions.file={file}: {what}; expected lines such as {{"id": "7", "spans": [[12, 15]]}}, characters of the '
            "response, end exclusive"
        )
    return found
