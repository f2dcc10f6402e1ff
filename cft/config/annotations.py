"""The Python type of an annotation, as griffe reads it from the source: nothing is imported.

Supported is what yaml can express: int, float, str, bool, None, Literal, string enumerations, unions, lists, tuples and dicts
of these, aliases for them, and the ranges of pydantic's Field. A class stands for a node that builds an object of it. Any
other annotation becomes `Any` and is left to the constructor. `cft/ranges.py` validates values against the types.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import griffe
from pydantic import Field

from cft.config.source import Definition, bases_of, find
from cft.ranges import object_of

_SCALARS: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "None": None}
_TYPING = ("typing.", "typing_extensions.", "collections.abc.")
_LISTS = {"list", "List", "Sequence", "Iterable", "Collection", "MutableSequence"}
_DICTS = {"dict", "Dict", "Mapping", "MutableMapping"}
_TUPLES = {"tuple", "Tuple"}
_MAX_DEPTH = 20


def type_of(annotation: str | griffe.Expr | None, depth: int = 0) -> Any:
    """The type an annotation spells in its module; Any where it is not understood."""
    if annotation is None or depth > _MAX_DEPTH:
        return Any
    if isinstance(annotation, str):
        return None if annotation == "None" else Any
    match annotation:
        case griffe.ExprBinOp(operator="|", left=left, right=right):
            return _union([type_of(left, depth + 1), type_of(right, depth + 1)])
        case griffe.ExprSubscript(left=head, slice=inside):
            items = inside.elements if isinstance(inside, griffe.ExprTuple) else [inside]
            return _generic(_plain_name(head), list(items), depth)
        case griffe.ExprName() | griffe.ExprAttribute():
            name = _plain_name(annotation)
            if name in _SCALARS:
                return _SCALARS[name]
            if name in _LISTS | _TUPLES:
                return list[Any]
            if name in _DICTS:
                return dict[str, Any]
            return _named(annotation.canonical_path, depth)
    return Any


def _generic(head: str, items: list[str | griffe.Expr], depth: int) -> Any:
    if head == "Literal":
        return _union([_literal(item, depth) for item in items])
    types = [type_of(item, depth + 1) for item in items if item != "..."]
    if head == "Union":
        return _union(types)
    if head == "Optional":
        return _union([*types, None])
    if head == "Annotated":
        fields = [field for item in items[1:] if (field := _field(item)) is not None]
        return Annotated[types[0], *fields] if fields else types[0]
    if head in _LISTS:
        return list[types[0]]
    if head in _DICTS and len(types) == 2:
        return dict[str, types[1]] | object_of("mapping")
    if head in _TUPLES:
        return list[types[0]] if items[-1] == "..." else tuple[tuple(types)]
    return Any


def _field(item: str | griffe.Expr) -> Any:
    """The Field with literal arguments in an item of Annotated, None for anything else; the item is not executed."""
    if not isinstance(item, griffe.ExprCall) or item.canonical_path not in ("pydantic.Field", "pydantic.fields.Field"):
        return None
    named = [argument for argument in item.arguments if isinstance(argument, griffe.ExprKeyword)]
    try:
        return Field(**{argument.name: ast.literal_eval(str(argument.value)) for argument in named})
    except ValueError:
        return None


def _literal(item: str | griffe.Expr, depth: int) -> Any:
    if isinstance(item, str):
        return Literal[ast.literal_eval(item)]  # pyright: ignore[reportInvalidTypeForm]
    try:
        return Literal[ast.literal_eval(str(item))]  # -1 is an expression
    except ValueError:
        return type_of(item, depth + 1)


def _named(path: str, depth: int) -> Any:
    found = find(path)
    if found is None or found.node is None:
        return Any
    if isinstance(found.node, griffe.Attribute | griffe.TypeAlias):  # such as Finish = Literal["stop", "length"]
        return type_of(found.node.value, depth + 1)
    return _class(found) if found.kind == "class" else Any


def _class(found: Definition) -> Any:
    node = found.node
    bases = {str(base).partition("[")[0].rpartition(".")[2] for base in node.bases}
    if "StrEnum" in bases:
        values = [m.value for m in node.members.values() if isinstance(m, griffe.Attribute) and m.value is not None]
        return Literal[tuple(ast.literal_eval(str(v)) for v in values)]  # pyright: ignore[reportInvalidTypeForm]
    # A class of the standard library, such as Path, accepts a string in its place; a class of another library does not.
    if bases & {"str", "int", "float", "Enum", "IntEnum", "TypedDict"}:
        return Any
    return object_of(node.name)


def _union(types: Sequence[Any]) -> Any:
    flat = [inner for t in types for inner in (get_args(t) if get_origin(t) is Union else (t,))]
    if Any in flat:
        return Any
    literals = [c for t in flat if get_origin(t) is Literal for c in get_args(t)]
    rest = [t for t in flat if get_origin(t) is not Literal]
    if literals:
        rest.insert(0, Literal[tuple(literals)])  # pyright: ignore[reportInvalidTypeForm]
    return Union[tuple(rest)]  # noqa: UP007


def _plain_name(expr: str | griffe.Expr) -> str:
    """Literal for typing.Literal, list for list; other names stay whole."""
    path = expr if isinstance(expr, str) else expr.canonical_path
    return path.rpartition(".")[2] if path.startswith(_TYPING) else path


def texts_of(definition: Definition, attribute: str) -> frozenset[str] | None:
    """The strings in a class attribute, inherited ones included; None if the source does not determine them."""
    for cls in bases_of(definition):
        if cls is None:
            return None
        member = cls.members.get(attribute)
        if isinstance(member, griffe.Attribute) and member.value is not None:
            return frozenset(_texts(member.value))
    return None


def keys_of_dict(path: str) -> frozenset[str]:
    """The string keys of a dict defined in a module."""
    found = find(path)
    value = found.node.value if found is not None and isinstance(found.node, griffe.Attribute) else None
    return (
        frozenset(t for key in value.keys for t in _texts(key)) if isinstance(value, griffe.ExprDict) else frozenset()
    )


def _texts(expr: Any) -> list[str]:
    """The strings in a constant, a name of one, a tuple or set of them, or frozenset(...)."""
    match expr:
        case str():
            value = ast.literal_eval(expr) if expr[:1] in "'\"" else None
            return [value] if isinstance(value, str) else []
        case griffe.ExprTuple(elements=inner) | griffe.ExprSet(elements=inner) | griffe.ExprList(elements=inner):
            return [text for item in inner for text in _texts(item)]
        case griffe.ExprCall(arguments=inner):
            return [text for item in inner for text in _texts(item)]
        case griffe.ExprName() | griffe.ExprAttribute():
            found = find(expr.canonical_path)
            if found is not None and isinstance(found.node, griffe.Attribute):
                return _texts(found.node.value)
    return []
