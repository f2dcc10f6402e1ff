"""Does a value from a config fit the annotation of the parameter it is for?

Annotations are read as syntax (`targets.py`), so only what yaml can spell is understood: int, float, str, bool,
None, Literal, string enumerations, unions, lists, tuples and dicts of these, aliases for them, and the ranges of
`cft/ranges.py`. No number may be NaN or infinite. Whatever else an annotation says is left to the constructor, with one
exception: a number or a text is never an object of a class.
"""

from __future__ import annotations

import ast
import math
import sys
from dataclasses import dataclass
from difflib import get_close_matches

from cft.configuration.targets import Definition, Source, base_names, last_name, lookup_dotted
from cft.ranges import Range

_SCALARS: dict[str, str] = {"int": "an integer", "float": "a number", "str": "text", "bool": "true or false"}
_LISTS = {"list", "List", "Sequence", "Iterable", "Collection", "MutableSequence"}
_DICTS = {"dict", "Dict", "Mapping", "MutableMapping"}
_MAX_DEPTH = 20


@dataclass(frozen=True, slots=True)
class Anything:
    """Not understood: every value may fit."""


@dataclass(frozen=True, slots=True)
class Scalar:
    name: str  # int | float | str | bool | None


@dataclass(frozen=True, slots=True)
class Within:
    kind: Kind
    range: Range


@dataclass(frozen=True, slots=True)
class OneOf:
    choices: tuple[str | int | bool | None, ...]


@dataclass(frozen=True, slots=True)
class ListOf:
    item: Kind


@dataclass(frozen=True, slots=True)
class TupleOf:
    items: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class DictOf:
    value: Kind


@dataclass(frozen=True, slots=True)
class ObjectOf:
    """An object of a class: a node with a `_target_`, which is checked for itself."""

    name: str


@dataclass(frozen=True, slots=True)
class Either:
    kinds: tuple[Kind, ...]


Kind = Anything | Scalar | Within | OneOf | ListOf | TupleOf | DictOf | ObjectOf | Either


def mismatch(value: object, annotation: ast.expr | None, source: Source) -> str | None:
    """ "expected ..., found ..." with a suggestion where one is near, None if the value fits or nothing can be said."""
    return _mismatch(value, Anything() if annotation is None else kind_of(annotation, source))


def mismatches_inside(value: object, annotation: ast.expr | None, source: Source) -> list[tuple[str, str]]:
    """(name, message) of each entry that does not fit where a mapping of one kind is expected, none elsewhere."""
    kind = Anything() if annotation is None else kind_of(annotation, source)
    if not isinstance(kind, DictOf) or not isinstance(value, dict):
        return []
    found = ((str(name), _mismatch(entry, kind.value)) for name, entry in value.items())
    return [(name, text) for name, text in found if text is not None]


def _mismatch(value: object, kind: Kind) -> str | None:
    if fits(value, kind):
        number = "finite numbers" if isinstance(value, list) else "a finite number"
        return None if _is_finite(value) else f"expected {number}, found {show(value)}"
    text = f"expected {describe(kind)}, found {show(value)}"
    near = get_close_matches(str(value), [str(c) for c in _choices(kind)], n=1, cutoff=0.5)
    if near:
        return f"{text}, did you mean {near[0]}?"
    if isinstance(value, int | float) and not isinstance(value, bool) and fits(str(value), kind):
        return f"{text}; quote it to make it text: '\"{value}\"'"
    return text


def fits(value: object, kind: Kind) -> bool:
    match kind:
        case Anything():
            return True
        case Scalar("int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case Scalar("float"):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case Scalar("str"):
            return isinstance(value, str)
        case Scalar("bool"):
            return isinstance(value, bool)
        case Within(inner, limits):
            return fits(value, inner) and isinstance(value, int | float) and limits.holds(value)
        case OneOf(choices):
            return any(type(value) is type(c) and value == c for c in choices)
        case ListOf(item):
            return isinstance(value, list) and all(fits(v, item) for v in value)
        case TupleOf(items):
            return isinstance(value, list) and len(value) == len(items) and all(map(fits, value, items))
        case DictOf(item):
            return isinstance(value, dict) and ("_target_" in value or all(fits(v, item) for v in value.values()))
        case ObjectOf():
            return isinstance(value, dict)
        case Either(kinds):
            return any(fits(value, k) for k in kinds)
        case Scalar():
            return value is None


def describe(kind: Kind) -> str:
    match kind:
        case Anything():
            return "anything"
        case Scalar(name):
            return _SCALARS.get(name, "null")
        case Within(inner, limits):
            return limits.limit(describe(inner))
        case OneOf(choices):
            names = ["null" if c is None else str(c) for c in choices]
            return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
        case ListOf(item):
            return "a list" if isinstance(item, Anything) else f"a list, each {describe(item)}"
        case TupleOf(items):
            return f"a list of {len(items)}, each {describe(items[0])}" if items else "an empty list"
        case DictOf():
            return "a mapping"
        case ObjectOf(name):
            return f"a node with a _target_ that makes a {name}"
        case Either(kinds):
            plain = [k for k in kinds if not isinstance(k, ObjectOf)]  # what a command line can say
            return " or ".join(dict.fromkeys(describe(k) for k in plain or kinds))


def kind_of(expr: ast.expr, source: Source, depth: int = 0) -> Kind:
    """The kind an annotation spells in its module; Anything where it is not understood."""
    if depth > _MAX_DEPTH:
        return Anything()
    match expr:
        case ast.Constant(value=None):
            return Scalar("None")
        case ast.Constant(value=str() as text):  # a quoted annotation
            try:
                return kind_of(ast.parse(text, mode="eval").body, source, depth + 1)
            except SyntaxError:
                return Anything()
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _either(kind_of(left, source, depth + 1), kind_of(right, source, depth + 1))
        case ast.Subscript(value=head, slice=argument):
            items = argument.elts if isinstance(argument, ast.Tuple) else [argument]
            return _generic(_name(head), items, source, depth)
        case ast.Name(id=name) if name in _SCALARS:
            return Scalar(name)
        case ast.Name() | ast.Attribute():
            if _name(expr) in _LISTS | {"tuple", "Tuple"}:
                return ListOf(Anything())
            if _name(expr) in _DICTS:
                return DictOf(Anything())
            return _named(lookup_dotted(source, expr, typing=True), depth)
    return Anything()


def _generic(head: str, items: list[ast.expr], source: Source, depth: int) -> Kind:
    if head == "Literal":
        return _either(*(_literal(item, source, depth) for item in items))
    kinds = [kind_of(item, source, depth + 1) for item in items]
    if head == "Union":
        return _either(*kinds)
    if head == "Optional":
        return _either(*kinds, Scalar("None"))
    if head == "Annotated":
        limits = [found for item in items[1:] if (found := _range(item)) is not None]
        return Within(kinds[0], limits[0]) if limits else kinds[0]
    if head in _LISTS:
        return ListOf(kinds[0])
    if head in _DICTS and len(kinds) == 2:
        return DictOf(kinds[1])
    if head in {"tuple", "Tuple"}:
        open_ended = isinstance(items[-1], ast.Constant) and items[-1].value is ...
        return ListOf(kinds[0]) if open_ended else TupleOf(tuple(kinds))
    return Anything()


def _range(item: ast.expr) -> Range | None:
    """The range that a `Range(...)` of literal bounds makes."""
    match item:
        case ast.Call(func=func, args=[], keywords=bounds) if last_name(func) == "Range":
            return Range(**{bound.arg: ast.literal_eval(bound.value) for bound in bounds if bound.arg})
    return None


def _literal(item: ast.expr, source: Source, depth: int) -> Kind:
    if isinstance(item, ast.Constant) and isinstance(item.value, str | int | bool | None):
        return OneOf((item.value,))
    return kind_of(item, source, depth + 1)


def _named(found: Definition | None, depth: int) -> Kind:
    if found is None or found.source is None:
        return Anything()
    if isinstance(found.node, ast.expr):  # an alias such as Finish = Literal["stop", "length"]
        return kind_of(found.node, found.source, depth + 1)
    if isinstance(found.node, ast.ClassDef):
        bases = base_names(found.node)
        if "StrEnum" in bases:
            assigned = [s.value for s in found.node.body if isinstance(s, ast.Assign)]
            return OneOf(tuple(v.value for v in assigned if isinstance(v, ast.Constant) and isinstance(v.value, str)))
        top_level = found.module.partition(".")[0]
        # Classes of the standard library, such as Path, may take a text in their stead; those of a library do not.
        if bases and {"str", "int", "float", "Enum", "IntEnum", "TypedDict"} & set(bases):
            return Anything()
        return ObjectOf(found.qualname) if top_level not in sys.stdlib_module_names else Anything()
    return Anything()


def _either(*kinds: Kind) -> Kind:
    flat: list[Kind] = []
    for kind in kinds:
        flat.extend(kind.kinds if isinstance(kind, Either) else [kind])
    if any(isinstance(k, Anything) for k in flat):
        return Anything()
    choices = tuple(c for k in flat if isinstance(k, OneOf) for c in k.choices)
    rest: list[Kind] = [k for k in flat if not isinstance(k, OneOf)]
    if choices:
        rest.insert(0, OneOf(choices))
    return rest[0] if len(rest) == 1 else Either(tuple(rest))


def _is_finite(value: object) -> bool:
    """Holds no NaN and no infinity, in its lists neither; the values of a mapping are looked at for themselves."""
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _choices(kind: Kind) -> tuple[object, ...]:
    if isinstance(kind, OneOf):
        return kind.choices
    return tuple(c for k in kind.kinds for c in _choices(k)) if isinstance(kind, Either) else ()


def show(value: object) -> str:
    """A value as a yaml would say it."""
    if isinstance(value, dict):
        return "a mapping" if "_target_" not in value else "an object"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."


def _name(expr: ast.expr) -> str:
    return expr.id if isinstance(expr, ast.Name) else expr.attr if isinstance(expr, ast.Attribute) else ""
