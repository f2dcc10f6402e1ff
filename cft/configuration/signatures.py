"""What a class or function takes, read from its source: its __init__, a base's, or the fields of a dataclass."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from cft.configuration.targets import Definition, Source, last_name, lookup_dotted, statements

# Bases that take no arguments of their own; their sources are frozen or in C.
_PLAIN_BASES = {"object", "ABC", "Protocol", "Generic"}
_MAX_BASES = 40  # classes followed before a hierarchy is called circular


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    keyword_only: bool
    required: bool
    annotation: ast.expr | None
    source: Source  # the names in `annotation` mean what they mean here


@dataclass(frozen=True, slots=True)
class Signature:
    """parameters: in order, without `self`. takes_any_keyword: the source says **kwargs, so no key can be checked."""

    parameters: tuple[Parameter, ...]
    takes_any_keyword: bool = False
    takes_any_positional: bool = False


def signature(definition: Definition) -> Signature | None:
    """What a class or function takes; None where the source does not tell."""
    if definition.source is None:
        return None
    if isinstance(definition.node, ast.FunctionDef):
        return _function_signature(definition.node, definition.source, skip_self=False)
    if isinstance(definition.node, ast.ClassDef):
        return _class_signature(definition.node, definition.source)
    return None


def is_dataclass(node: ast.ClassDef) -> bool:
    return any(last_name(d.func if isinstance(d, ast.Call) else d) == "dataclass" for d in node.decorator_list)


def _class_signature(node: ast.ClassDef, source: Source, *, hops: int = 0) -> Signature | None:
    if hops > _MAX_BASES:
        return None
    for member in statements(node.body, typing=False):
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return _function_signature(member, source, skip_self=True)
    if is_dataclass(node):
        return Signature(tuple(_dataclass_fields(node, source).values()))
    for base in node.bases:
        expr = base.value if isinstance(base, ast.Subscript) else base
        if last_name(expr) in _PLAIN_BASES:
            continue
        found = lookup_dotted(source, expr)
        if found is None or not isinstance(found.node, ast.ClassDef) or found.source is None:
            return None
        inherited = _class_signature(found.node, found.source, hops=hops + 1)
        if inherited is None or inherited.parameters or inherited.takes_any_keyword:
            return inherited
    return Signature(())


def _function_signature(node: ast.FunctionDef, source: Source, *, skip_self: bool) -> Signature:
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    first_default = len(positional) - len(args.defaults)
    parameters = [
        Parameter(a.arg, False, i < first_default, a.annotation, source)
        for i, a in enumerate(positional)
        if not (skip_self and i == 0)
    ]
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        parameters.append(Parameter(arg.arg, True, default is None, arg.annotation, source))
    return Signature(tuple(parameters), args.kwarg is not None, args.vararg is not None)


def _dataclass_fields(node: ast.ClassDef, source: Source) -> dict[str, Parameter]:
    fields: dict[str, Parameter] = {}
    for base in reversed(node.bases):
        found = lookup_dotted(source, base.value if isinstance(base, ast.Subscript) else base)
        if found and found.source and isinstance(found.node, ast.ClassDef) and is_dataclass(found.node):
            fields |= _dataclass_fields(found.node, found.source)
    keyword_only = any(
        keyword.arg == "kw_only" and _constant(keyword.value) is True
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call)
        for keyword in decorator.keywords
    )
    for member in node.body:
        if not isinstance(member, ast.AnnAssign) or not isinstance(member.target, ast.Name):
            continue
        annotation = member.annotation.value if isinstance(member.annotation, ast.Subscript) else member.annotation
        if last_name(annotation) == "ClassVar":
            continue
        if last_name(annotation) == "KW_ONLY":
            keyword_only = True
            continue
        options = {}
        if isinstance(member.value, ast.Call) and last_name(member.value.func) == "field":
            options = {k.arg: k.value for k in member.value.keywords}
            required = not {"default", "default_factory"} & options.keys()
        else:
            required = member.value is None
        if "init" in options and _constant(options["init"]) is False:
            fields.pop(member.target.id, None)
            continue
        own = _constant(options["kw_only"]) if "kw_only" in options else keyword_only
        fields[member.target.id] = Parameter(member.target.id, own is True, required, member.annotation, source)
    return fields


def _constant(expr: ast.AST) -> object:
    return expr.value if isinstance(expr, ast.Constant) else None
