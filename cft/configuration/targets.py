"""What a dotted name stands for, read from the source text: where it is really defined.

Importing lightning or transformers takes six seconds and torch two; the config check has under three for everything. So
names are followed with `ast`, through re-exports (`from x import Y as Z`, a package's __init__, star imports), and so
are signatures (`cft/configuration/signatures.py`). Nothing is imported: of a name's parts only the first goes through
`importlib.util.find_spec`, which locates a top-level package without running it; the rest are files below it.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

_MAX_HOPS = 40  # re-exports followed before a name is called circular


@dataclass(frozen=True, slots=True)
class Source:
    """One parsed module. search: the folders its submodules live in, empty for a plain module."""

    module: str
    tree: ast.Module = field(repr=False)
    search: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Definition:
    """Where a name is really defined. kind "module": the name is a module itself; "value": neither class nor function;
    "unreadable": it leads to a module without Python source, or is made at run time."""

    module: str
    qualname: str
    kind: Literal["class", "function", "module", "value", "unreadable"]
    node: ast.AST | None = field(repr=False, default=None)
    source: Source | None = field(repr=False, default=None)

    @property
    def full_name(self) -> str:
        return f"{self.module}.{self.qualname}" if self.qualname else self.module


class TargetError(LookupError):
    """A dotted name that leads nowhere. candidates: names that would have led somewhere from the same place."""

    def __init__(self, message: str, *, candidates: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.candidates = candidates


def resolve(target: str) -> Definition:
    """The class or function that `package.module.Name` stands for. Raises TargetError if it stands for nothing.

    Only `module.Name` is a target: a method, a nested class or a walk through another module's attributes is not.
    """
    module, _, name = target.rpartition(".")
    if not module or not all(part.isidentifier() for part in target.split(".")):
        raise TargetError(f"'{target}' is not a dotted name package.module.Name")
    source = read_module(module)
    if source is None:
        return _explain_missing_module(module, name)
    found = lookup(source, name)
    if found is None:
        names = tuple(f"{module}.{n}" for n in _public_names(source))
        raise TargetError(f"module {module} has no '{name}'", candidates=names)
    return found


def base_names(node: ast.ClassDef) -> list[str]:
    return [last_name(b.value if isinstance(b, ast.Subscript) else b) for b in node.bases]


def read_module(module: str) -> Source | None:
    """The parsed source of a module, None where there is none (no such module, or it is not written in Python)."""
    parts = module.split(".")
    try:
        spec = importlib.util.find_spec(parts[0])
    except (ImportError, ValueError):  # ValueError: a module that set its __spec__ to None, such as __main__
        return None
    if spec is None:
        return None
    search = tuple(Path(p) for p in spec.submodule_search_locations or ())
    file = Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for part in parts[1:]:
        file, search = _child(search, part)
        if file is None and not search:
            return None
    if file is None:
        return Source(module, ast.Module(body=[], type_ignores=[]), search) if search else None
    try:
        tree = _parse(file, file.stat().st_mtime_ns)
    except FileNotFoundError:
        return None
    except (SyntaxError, ValueError) as error:
        raise TargetError(f"module {module} cannot be read ({error})") from error
    return Source(module, tree, search)


def lookup(source: Source, name: str, *, typing: bool = False, hops: int = 0) -> Definition | None:
    """What `name` means in a module, re-exports followed. typing: names imported for the type checker count, too."""
    if hops > _MAX_HOPS:
        return Definition(source.module, name, "unreadable")
    bound, stars = _bindings(source.tree, typing)
    if name in bound:
        return _follow(source, name, bound[name], typing=typing, hops=hops)
    for star in reversed(stars):
        origin = read_module(_absolute(source, star))
        found = lookup(origin, name, typing=typing, hops=hops + 1) if origin is not None else None
        if found is not None:
            return found
    if read_module(f"{source.module}.{name}") is not None:
        return Definition(f"{source.module}.{name}", "", "module")
    if "__getattr__" in bound:  # made at run time, such as transformers' lazy names
        return Definition(source.module, name, "unreadable")
    return None


def lookup_dotted(source: Source, expr: ast.expr, *, typing: bool = False, hops: int = 0) -> Definition | None:
    """What an expression such as `Name` or `package.module.Name` means in a module; None where that is not plain."""
    if isinstance(expr, ast.Name):
        return lookup(source, expr.id, typing=typing, hops=hops)
    if isinstance(expr, ast.Attribute):
        owner = lookup_dotted(source, expr.value, typing=typing, hops=hops)
        inner = read_module(owner.module) if owner is not None and owner.kind == "module" else None
        if inner is not None:
            return lookup(inner, expr.attr, typing=typing, hops=hops + 1)
        if owner is not None and owner.kind == "module":
            return Definition(owner.module, expr.attr, "unreadable")
    return None


def _follow(source: Source, name: str, node: ast.AST, *, typing: bool, hops: int) -> Definition | None:
    match node:
        case ast.ClassDef():
            return Definition(source.module, name, "class", node, source)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return Definition(source.module, name, "function", node, source)
        case ast.Import(names=names):
            alias = next(a for a in names if (a.asname or a.name.split(".")[0]) == name)
            return Definition(alias.name if alias.asname else name, "", "module")
        case ast.ImportFrom(names=names):
            original = next(a.name for a in names if (a.asname or a.name) == name)
            module = _absolute(source, node)
            origin = read_module(module)
            if origin is None:
                return Definition(module, original, "unreadable")
            if module == source.module and original == name:  # a package's __init__ imports its own submodule
                return Definition(f"{module}.{name}", "", "module")
            return lookup(origin, original, typing=typing, hops=hops + 1) or Definition(module, original, "unreadable")
        case ast.expr():
            alias = lookup_dotted(source, node, typing=typing, hops=hops + 1)
            return alias or Definition(source.module, name, "value", node, source)
    return None


def _explain_missing_module(module: str, name: str) -> Definition:
    """Why there is no such module: it is an attribute that leads into another one, or it does not exist at all."""
    parts = module.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        source = read_module(".".join(parts[:cut]))
        if source is None:
            continue
        inside = lookup(source, parts[cut])
        if inside is not None and inside.kind != "module":
            raise TargetError(f"{'.'.join(parts[: cut + 1])} is no module; a target is a module's class or function")
        if inside is not None:
            rest = [*parts[cut + 1 :], name]
            return Definition(inside.module, ".".join(rest), "unreadable")
        names = tuple(".".join([*parts[:cut], n, *parts[cut + 1 :], name]) for n in _submodules(source))
        raise TargetError(f"there is no module {'.'.join(parts[: cut + 1])}", candidates=names)
    raise TargetError(f"there is no package '{parts[0]}', or none that is written in Python")


def _bindings(tree: ast.Module, typing: bool) -> tuple[dict[str, ast.AST], list[ast.ImportFrom]]:
    bound: dict[str, ast.AST] = {}
    stars: list[ast.ImportFrom] = []
    for node in statements(tree.body, typing):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                bound[name] = node
            case ast.ImportFrom(names=[ast.alias(name="*")]):
                stars.append(node)
            case ast.Import(names=names):
                bound |= {a.asname or a.name.split(".")[0]: node for a in names}
            case ast.ImportFrom(names=names):
                bound |= {a.asname or a.name: node for a in names}
            case ast.Assign(targets=targets, value=value):
                bound |= {t.id: value for t in targets if isinstance(t, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                bound[name] = value
    return bound, stars


def statements(body: list[ast.stmt], typing: bool) -> Iterator[ast.stmt]:
    """Statements of a block and of the branches in it; what a later one binds wins, a `try` wins over its handlers."""
    for node in body:
        if isinstance(node, ast.If):
            guard = last_name(node.test) == "TYPE_CHECKING"
            yield from statements(node.orelse, typing)
            if typing or not guard:
                yield from statements(node.body, typing)
        elif isinstance(node, ast.Try):
            for handler in node.handlers:
                yield from statements(handler.body, typing)
            yield from statements([*node.body, *node.orelse, *node.finalbody], typing)
        elif isinstance(node, ast.With):
            yield from statements(node.body, typing)
        else:
            yield node


def _child(search: tuple[Path, ...], name: str) -> tuple[Path | None, tuple[Path, ...]]:
    for folder in search:
        if (package := folder / name / "__init__.py").is_file():
            return package, (folder / name,)
        if (module := folder / f"{name}.py").is_file():
            return module, ()
        if (folder / name).is_dir():
            return None, (folder / name,)
    return None, ()


def _submodules(source: Source) -> list[str]:
    files = [p for folder in source.search for p in folder.iterdir() if p.stem[0] not in "._"]
    return sorted({p.stem if p.is_file() else p.name for p in files})


def _public_names(source: Source) -> list[str]:
    bound, _ = _bindings(source.tree, False)
    return [n for n, node in bound.items() if not n.startswith("_") and not isinstance(node, ast.Import | ast.expr)]


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    parts = source.module.split(".")
    drop = node.level - (1 if source.search else 0)
    base = parts[: len(parts) - drop] if drop else parts
    return ".".join([*base, *([node.module] if node.module else [])])


def last_name(expr: ast.AST) -> str:
    return expr.id if isinstance(expr, ast.Name) else expr.attr if isinstance(expr, ast.Attribute) else ""


@lru_cache(maxsize=512)
def _parse(file: Path, mtime_ns: int) -> ast.Module:
    del mtime_ns  # part of the cache key: an edited file is read again
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
