"""Ranges of constructor parameters, declared once, in the parameter's annotation.

    @in_range
    def __init__(self, *, gamma: AtLeastZero, detached: bool) -> None: ...

The config check reads them from the source (`cft/configuration/value_types.py`), so that a value out of range is reported
with its config path before anything is imported; `in_range` holds whoever calls the constructor to the same. NaN and infinities
are in no range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, wraps
from typing import Annotated, Any, ParamSpec, get_args, get_type_hints

from cft.errors import BadValue

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Range:
    """Finite numbers within bounds. least and most belong to it, above and below do not."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def holds(self, value: float) -> bool:
        return math.isfinite(value) and self.least <= value <= self.most and self.above < value < self.below

    def limit(self, noun: str) -> str:
        """The noun with the bounds: "a number from 0 to 1"."""
        if self.least > -math.inf and self.most < math.inf:
            return f"{noun} from {self.least:g} to {self.most:g}"
        low = [f"of at least {self.least:g}"] if self.least > -math.inf else []
        low += [f"above {self.above:g}"] if self.above > -math.inf else []
        high = [f"at most {self.most:g}"] if self.most < math.inf else []
        high += [f"below {self.below:g}"] if self.below < math.inf else []
        return f"{noun} {' and '.join([*low, *high])}" if low or high else noun.replace("a number", "a finite number")


Finite = Annotated[float, Range()]
AtLeastZero = Annotated[float, Range(least=0)]
AboveZero = Annotated[float, Range(above=0)]
Fraction = Annotated[float, Range(least=0, most=1)]
ShareAboveZero = Annotated[float, Range(above=0, most=1)]
FractionBelowOne = Annotated[float, Range(least=0, below=1)]
AtLeastOne = Annotated[int, Range(least=1)]


def in_range(init: Callable[P, None]) -> Callable[P, None]:
    """An __init__ that raises BadValue where a keyword argument is outside the range of its annotation."""

    @cache
    def ranges() -> dict[str, Range]:
        hints = get_type_hints(init, include_extras=True)
        return {name: found for name, hint in hints.items() for found in _ranges_in(hint)}

    @wraps(init)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        for name, allowed in ranges().items():
            value = kwargs.get(name)
            if isinstance(value, int | float) and not allowed.holds(value):
                noun = allowed.limit("a number")
                raise BadValue(f"{type(args[0]).__name__}.{name}: expected {noun}, found {value}")
        init(*args, **kwargs)

    return checked


def _ranges_in(hint: Any) -> Iterator[Range]:
    """Of an annotation and of the members of a union."""
    for part in (*get_args(hint), *getattr(hint, "__metadata__", ())):
        if isinstance(part, Range):
            yield part
        elif get_args(part):
            yield from _ranges_in(part)
