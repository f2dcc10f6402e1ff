"""Ranges of parameters, declared once in the parameter's type annotation and validated by pydantic.

    @in_range
    def __init__(self, *, gamma: AtLeastZero, detached: bool) -> None: ...

The config check reads the annotations from the source (`cft/config/annotations.py`) and reports invalid values with their
config path before anything is imported; `in_range` and `require_in_range` enforce the same ranges on direct calls of a
constructor. No range contains NaN, an infinity or an integer of more than 64 bits.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from cft.errors import BadValue

P = ParamSpec("P")
T = TypeVar("T")

Finite = Annotated[float, Field(allow_inf_nan=False)]
AtLeastZero = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
FractionAboveZero = Annotated[float, Field(gt=0, le=1, description="a number above 0 and at most 1 (1 = all)")]
FractionInside = Annotated[float, Field(gt=0, lt=1)]
FractionBelowHalf = Annotated[float, Field(ge=0, lt=0.5)]
FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
CountOrAll = Annotated[Literal[-1] | AtLeastOne, Field(description="an integer of at least 1, or -1 for all")]
Seed = Annotated[int, Field(ge=0, lt=4294967296, description="an integer from 0 to 2^32 - 1")]
Name = Annotated[str, Field(pattern=r"\S", description="text that is not empty")]

_NOUNS = {int: "an integer", float: "a number", str: "text", bool: "true or false", NoneType: "null", Any: "anything"}
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Made:
    """Annotation of a config node with a `_target_`. name: the expected class or protocol of the object."""

    name: str


def _has_target(node: dict[str, Any]) -> dict[str, Any]:
    if "_target_" not in node:
        raise ValueError("no _target_")
    return node


def object_of(name: str) -> Any:
    """The type of a config node that creates an object of the class `name`; the node's arguments are checked separately."""
    return Annotated[dict[str, Any], AfterValidator(_has_target), Made(name)]


def mismatch(value: object, hint: Any) -> str | None:
    """Error message for a value (of yaml or JSON) that does not fit a type, with a suggestion if possible; None if it fits."""
    if fits(value, hint):
        return None
    text = f"expected {describe(hint, objects=isinstance(value, dict))}, found {show(value)}"
    if not _is_finite(value):
        return f"expected {'finite numbers' if isinstance(value, list) else 'a finite number'}, found {show(value)}"
    if _beyond_64_bits(value):
        return f"{text}, which does not fit into 64 bits"
    near = get_close_matches(str(value), [str(c) for c in _choices(hint)], n=1, cutoff=0.5)
    if near:
        return f"{text}, did you mean {near[0]}?"
    if isinstance(value, int | float) and not isinstance(value, bool) and fits(str(value), hint):
        return f"{text}; quote it to make it text: '\"{value}\"'"
    return text


def fits(value: object, hint: Any) -> bool:
    if _beyond_64_bits(value) or not _is_finite(value):
        return False
    try:
        text = json.dumps(value)
    except TypeError:  # a value that is known only when a job runs, such as ${hydra:job.num}
        return True
    try:
        found = _adapter(hint).validate_json(text)
    except ValidationError:
        return False
    return isinstance(found, bool) == isinstance(value, bool)  # Literal[1] takes true for 1


def describe(hint: Any, *, objects: bool = False) -> str:
    """A type and its range in words: "a number from 0 to 1". objects: in a union, also name object types."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        made = next((m.name for m in args[1:] if isinstance(m, Made)), "")
        # Python flattens nested annotations; the last one is the outermost.
        said = next((m.description for m in args[:0:-1] if isinstance(m, FieldInfo) and m.description), "")
        if made:
            return f"a node with a _target_ that makes a {made}"
        return said or _limited(describe(args[0]), _bounds(args[1:]))
    if origin is Literal:
        names = ["null" if c is None else "true" if c is True else "false" if c is False else str(c) for c in args]
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    if origin in (Union, UnionType):
        plain = [a for a in args if objects or not _is_made(a)]  # types that can be given on a command line
        return " or ".join(dict.fromkeys(describe(a) for a in plain or args))
    if origin is tuple and args[-1:] != (...,):
        return f"a list of {len(args)}, each {describe(args[0])}" if args else "an empty list"
    if origin in (list, tuple) or hint in (list, tuple):
        return "a list" if not args or args[0] is Any else f"a list, each {describe(args[0])}"
    return _NOUNS.get(hint, "a mapping")


def show(value: object) -> str:
    """A value as written in yaml, shortened to 60 characters."""
    if isinstance(value, dict):
        return "a mapping" if "_target_" not in value else "an object"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."


def in_range(init: Callable[P, T]) -> Callable[P, T]:
    """Decorator: the __init__ or function raises BadValue if a keyword argument is outside the range of its annotation."""

    @wraps(init)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        owner = type(args[0]).__name__ if init.__name__ == "__init__" else init.__name__
        _require(owner, _ranges(init), kwargs)
        return init(*args, **kwargs)

    return checked


def require_in_range(made: Any) -> None:
    """Raise BadValue if a field of the dataclass instance is outside its range; for use in __post_init__."""
    kind = type(made)
    _require(kind.__name__, _ranges(kind), {name: getattr(made, name) for name in _ranges(kind)})


def _require(owner: str, ranges: Mapping[str, Any], values: Mapping[str, object]) -> None:
    for name, hint in ranges.items():
        value = values.get(name)
        if isinstance(value, int | float | str) and (text := mismatch(value, hint)):
            raise BadValue(f"{owner}.{name}: {text}")


@cache
def _ranges(annotated: Any) -> dict[str, Any]:
    """The annotations with a range. Evaluated one by one, since others may use names imported only for type checking."""
    names = vars(sys.modules[annotated.__module__])
    found = {}
    for name, hint in annotated.__annotations__.items():
        try:
            found[name] = eval(hint, names) if isinstance(hint, str) else hint  # our own source
        except NameError:
            continue
    return {name: hint for name, hint in found.items() if has_range(hint)}


def has_range(hint: Any) -> bool:
    return any(isinstance(part, FieldInfo) or has_range(part) for part in get_args(hint))


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=_STRICT)


def _bounds(metadata: tuple[Any, ...]) -> dict[str, float]:
    parts = [p for m in metadata if isinstance(m, FieldInfo) for p in m.metadata]
    return {name: getattr(p, name) for p in parts for name in ("ge", "gt", "le", "lt") if hasattr(p, name)}


def _limited(noun: str, bounds: Mapping[str, float]) -> str:
    if {"ge", "le"} <= bounds.keys():
        return f"{noun} from {bounds['ge']:g} to {bounds['le']:g}"
    words = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = " and ".join(f"{word} {bounds[name]:g}" for name, word in words.items() if name in bounds)
    return f"{noun} {limits}" if limits else noun.replace("a number", "a finite number")


def _is_made(hint: Any) -> bool:
    return any(isinstance(part, Made) for part in get_args(hint))


def _choices(hint: Any) -> Iterator[object]:
    for part in get_args(hint):
        yield from [part] if get_origin(hint) is Literal else _choices(part)


def _beyond_64_bits(value: object) -> bool:
    inner = value if isinstance(value, list) else ()
    return any(map(_beyond_64_bits, inner)) or (isinstance(value, int) and not -(2**63) <= value < 2**63)


def _is_finite(value: object) -> bool:
    """Whether a value, or a (nested) list, holds no NaN and no infinity; values of a mapping are checked separately."""
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
