"""What a dotted name refers to and what it takes, read from the source text by griffe: nothing is imported.

Importing lightning or transformers takes six seconds and torch two; the config check has under three for everything. griffe
reads a module in milliseconds; only those that a name or an annotation leads to are read. Of a name's parts only the first goes
through `importlib.util.find_spec`, which locates a top-level package without running it; the rest are files below it.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import griffe

_MAX_HOPS = 40  # re-exports followed before a name is called circular
# Bases that take no arguments of their own; their sources are frozen or in C.
_PLAIN_BASES = {"object", "abc.ABC", "typing.Protocol", "typing.Generic"}


@dataclass(frozen=True, slots=True)
class Definition:
    """Where a name is really defined. kind "module": the name is a module itself; "value": neither class nor function;
    "unreadable": it leads to a module without Python source, or is made at run time."""

    full_name: str
    kind: Literal["class", "function", "module", "value", "unreadable"]
    node: Any = field(repr=False, default=None)  # griffe's object


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    keyword_only: bool
    required: bool
    annotation: str | griffe.Expr | None


@dataclass(frozen=True, slots=True)
class Signature:
    """parameters: in order, without `self`. takes_any_keyword: the source says **kwargs, so no key can be checked."""

    parameters: tuple[Parameter, ...]
    takes_any_keyword: bool = False
    takes_any_positional: bool = False


class TargetError(LookupError):
    """A dotted name that leads nowhere. candidates: names that would have led somewhere from the same place."""

    def __init__(self, message: str, *, candidates: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.candidates = candidates


def resolve(target: str) -> Definition:
    """The class or function that `package.module.Name` refers to. Raises TargetError if there is none.

    Only `module.Name` is a target: a method, a nested class or a walk through another module's attributes is not.
    """
    module, _, name = target.rpartition(".")
    if not module or not all(part.isidentifier() for part in target.split(".")):
        raise TargetError(f"'{target}' is not a dotted name package.module.Name")
    source = read_module(module)
    if source is None:
        return _explain_missing_module(module, name)
    found = _in_module(source, name)
    if found is None:
        names = tuple(f"{module}.{n}" for n, m in source.members.items() if _public(m, module=module))
        raise TargetError(f"module {module} has no '{name}'", candidates=names)
    return found


def signature(definition: Definition) -> Signature | None:
    """What a class or function takes; None where the source does not tell."""
    if definition.kind == "function":
        return _signature(definition.node.parameters, skip=0)
    if definition.kind != "class":
        return None
    for cls in bases_of(definition):
        if cls is None:
            return None
        if "__init__" not in cls.members and any(_is_dataclass(d) for d in cls.decorators):
            griffe.DataclassesExtension().on_package(pkg=cast("griffe.Module", cls))  # gives it an __init__
        init = cls.members.get("__init__")
        if isinstance(init, griffe.Function):
            return _signature(init.parameters, skip=1)
    return Signature(())


def bases_of(definition: Definition) -> Iterator[griffe.Class | None]:
    """A class and its bases in the order in which Python looks into them; None in place of one that cannot be read."""
    if not isinstance(definition.node, griffe.Class):
        yield None
        return
    try:
        classes = [definition.node, *definition.node.mro()]
    except ValueError:  # no order suits its bases
        yield None
        return
    for cls in classes:
        yield cls
        known = {base.path for base in cls.resolved_bases}
        for base in cls.bases:
            path = base if isinstance(base, str) else base.canonical_path
            path = path.partition("[")[0]
            found = None if path in _PLAIN_BASES else find(path)
            if path not in _PLAIN_BASES and (found is None or found.full_name not in known):
                yield None
                return


def find(path: str, *, hops: int = 0) -> Definition | None:
    """What a full name leads to, re-exports followed; None for a name of no module."""
    if hops > _MAX_HOPS:
        return Definition(path, "unreadable")
    module, _, name = path.rpartition(".")
    if not module:
        return Definition(path, "module") if path in sys.stdlib_module_names else None
    if module.partition(".")[0] in sys.stdlib_module_names:
        return Definition(path, "unreadable")
    if (source := read_module(module)) is not None:
        return _in_module(source, name, hops=hops) or Definition(path, "unreadable")
    owner = find(module, hops=hops + 1)
    if owner is not None and owner.kind == "module" and owner.full_name != module:
        return find(f"{owner.full_name}.{name}", hops=hops + 1)
    return Definition(path, "unreadable")


def read_module(module: str) -> griffe.Module | None:
    """A module as griffe reads it, None where there is none (no such module, or it is not written in Python)."""
    file, search = _location(module)
    if file is None and not search:
        return None
    if file is None:
        return griffe.Module(module.rpartition(".")[2], filepath=list(search), parent=_parent(module))
    try:
        return _visit(module, file, file.stat().st_mtime_ns)
    except FileNotFoundError:
        return None
    except (SyntaxError, ValueError) as error:
        raise TargetError(f"module {module} cannot be read ({error})") from error


class _WhenAsked(griffe.ModulesCollection):
    """Gives griffe the bases and targets that it looks for, by reading their modules when it does."""

    def get_member(self, key: str | Sequence[str]) -> Any:
        path = key if isinstance(key, str) else ".".join(key)
        found = find(path.partition("[")[0])
        if found is None or found.node is None:
            raise KeyError(path)
        return found.node


_MODULES = _WhenAsked()


@lru_cache(maxsize=512)
def _visit(module: str, file: Path, mtime_ns: int) -> griffe.Module:
    del mtime_ns  # part of the cache key: an edited file is read again
    name, code = module.rpartition(".")[2], file.read_text(encoding="utf-8")
    return griffe.visit(name, filepath=file, code=code, parent=_parent(module), modules_collection=_MODULES)


def _parent(module: str) -> griffe.Module | None:
    """The packages above a module, empty: they are there for their names, which relative imports need."""
    above = module.rpartition(".")[0]
    if not above:
        return None
    file, search = _location(above)
    path: Any = file or list(search)
    return griffe.Module(above.rpartition(".")[2], filepath=path, parent=_parent(above), modules_collection=_MODULES)


def _location(module: str) -> tuple[Path | None, tuple[Path, ...]]:
    """(a module's file, the folders its submodules live in)."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):  # ValueError: a module that set its __spec__ to None, such as __main__
        return None, ()
    if spec is None:
        return None, ()
    search = tuple(Path(p) for p in spec.submodule_search_locations or ())
    file = Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for part in rest:
        file, search = _child(search, part)
    return file, search


def _child(search: tuple[Path, ...], name: str) -> tuple[Path | None, tuple[Path, ...]]:
    for folder in search:
        if (package := folder / name / "__init__.py").is_file():
            return package, (folder / name,)
        if (module := folder / f"{name}.py").is_file():
            return module, ()
        if (folder / name).is_dir():
            return None, (folder / name,)
    return None, ()


def _in_module(source: griffe.Module, name: str, *, hops: int = 0) -> Definition | None:
    """What a name means in a module; names imported for the type checker alone count where annotations are followed."""
    path = f"{source.path}.{name}"
    member = source.members.get(name)
    if member is not None and (member.runtime or hops):
        if not isinstance(member, griffe.Alias):
            kinds: dict[str, Any] = {"class": "class", "function": "function"}
            return Definition(path, kinds.get(member.kind.value, "value"), member)
        if member.target_path != path:  # else a package's __init__ imports its own submodule
            if read_module(member.target_path) is not None:
                return Definition(member.target_path, "module")
            return find(member.target_path, hops=hops + 1)
    for star in [m for m in source.members.values() if isinstance(m, griffe.Alias) and m.wildcard]:
        origin = read_module(str(star.wildcard).removesuffix(".*"))
        found = _in_module(origin, name, hops=hops + 1) if origin is not None else None
        if found is not None:
            return found
    if read_module(path) is not None:
        return Definition(path, "module")
    # Made at run time; a module that lists its names makes no others.
    made = "__getattr__" in source.members and (source.exports is None or name in map(str, source.exports))
    return Definition(path, "unreadable") if made else None


def _signature(parameters: griffe.Parameters, *, skip: int) -> Signature:
    kinds = griffe.ParameterKind
    named = [p for p in parameters if p.kind not in (kinds.var_positional, kinds.var_keyword)]
    read = tuple(Parameter(p.name, p.kind is kinds.keyword_only, p.required, _unquoted(p)) for p in named[skip:])
    there = {p.kind for p in parameters}
    return Signature(read, kinds.var_keyword in there, kinds.var_positional in there)


def _unquoted(parameter: griffe.Parameter) -> str | griffe.Expr | None:
    """An annotation; one in quotes is read, too, which griffe leaves alone where annotations are not evaluated."""
    text = parameter.annotation
    if isinstance(text, str) and text[:1] in "'\"" and parameter.function is not None:
        try:
            return griffe.get_expression(
                ast.parse(ast.literal_eval(text), mode="eval").body, parent=parameter.function.module
            )
        except SyntaxError:
            return None
    return text


def _is_dataclass(decorator: griffe.Decorator) -> bool:
    path = decorator.value if isinstance(decorator.value, str) else decorator.value.canonical_path
    return path == "dataclasses.dataclass"


def _public(member: Any, *, module: str) -> bool:
    """Whether a target may be meant: a module's own class or function, or what a package re-exports of its modules."""
    if member.name.startswith("_"):
        return False
    if member.is_alias:
        return member.target_path.startswith(f"{module}.")
    return member.is_class or member.is_function


def _explain_missing_module(module: str, name: str) -> Definition:
    """Why there is no such module: it is an attribute that leads into another one, or it does not exist at all."""
    parts = module.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        source = read_module(".".join(parts[:cut]))
        if source is None:
            continue
        inside = _in_module(source, parts[cut])
        if inside is not None and (inside.kind in ("class", "function", "value")):
            raise TargetError(f"{'.'.join(parts[: cut + 1])} is no module; a target is a module's class or function")
        if inside is not None:
            return Definition(".".join([inside.full_name, *parts[cut + 1 :], name]), "unreadable")
        names = tuple(".".join([*parts[:cut], n, *parts[cut + 1 :], name]) for n in _submodules(source))
        raise TargetError(f"there is no module {'.'.join(parts[: cut + 1])}", candidates=names)
    raise TargetError(
        f"there is no package '{parts[0]}', or none that is written in Python; install it, or set PYTHONPATH to the folder "
        "that holds it"
    )


def _submodules(source: griffe.Module) -> list[str]:
    _, search = _location(source.path)
    files = [p for folder in search for p in folder.iterdir() if p.stem[0] not in "._"]
    return sorted({p.stem if p.is_file() else p.name for p in files})
