"""Which `_target_`s a config may name. A config is input; with a free choice of target it would be a program.

Checked twice. As text, before anything is imported: the name must start with an allowed prefix, and so must the definition that
it refers to in the source (`cft.models.load.torch.hub.load` starts with cft. but is torch.hub's). After the import: the
object's own module and qualified name. Methods, nested classes and names reached through other modules are refused.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from cft.config.source import Definition, TargetError, resolve

OWN = ("cft.",)
LIBRARIES = ("torch.optim.", "lightning.pytorch.")  # their classes only
# These build any object by name, read a command line, or run jobs.
_NEVER = (
    "lightning.pytorch.cli.",
    "cft.api.",
    "cft.config.",
    "cft.stages.",
)


def refusal(target: object, *, extra: Sequence[str] = ()) -> str | None:
    """Why a `_target_` may not be built, None if it may. extra: the user's own prefixes, each ending in a dot."""
    if not isinstance(target, str):
        return f"expected a dotted name package.module.Name, found {target!r}"
    if not target.startswith((*OWN, *LIBRARIES, *extra)):
        return f"'{target}' is refused: targets must be under {_listed(extra)}; {_remedy(target)}"
    try:
        definition = resolve(target)
    except TargetError as error:
        near = get_close_matches(target, error.candidates, n=1, cutoff=0.7)
        return f"'{target}': {error}" + (f", did you mean {near[0]}?" if near else "")
    return _refused_definition(target, definition, extra)


def import_target(target: str, *, extra: Sequence[str] = ()) -> Callable[..., Any]:
    """The class or function, imported once its name has passed. Raises PermissionError if it may not be built."""
    reason = refusal(target, extra=extra)
    if reason is not None:
        raise PermissionError(reason)
    module, _, name = target.rpartition(".")
    found = vars(importlib.import_module(module)).get(name)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        raise PermissionError(f"'{target}' is refused: it is {type(found).__name__}, neither a class nor a function")
    kind = "class" if inspect.isclass(found) else "function"
    reason = _refused_definition(target, Definition(f"{found.__module__}.{found.__qualname__}", kind), extra)
    if reason is None and "." in found.__qualname__:
        reason = f"'{target}' is refused: it is {found.__qualname__}; a target is a module's own class or function"
    if reason is not None:
        raise PermissionError(reason)
    return found


def bad_prefix(prefix: object) -> str | None:
    """What is wrong with an entry of allow_targets, None if nothing is."""
    if isinstance(prefix, str) and prefix.endswith(".") and all(p.isidentifier() for p in prefix[:-1].split(".")):
        return None
    return f"expected a package name with a dot at its end, such as mylab., found {prefix!r}"


def _refused_definition(target: str, definition: Definition, extra: Sequence[str]) -> str | None:
    name = definition.full_name
    if not name.startswith((*OWN, *LIBRARIES, *extra)):
        return f"'{target}' is refused: it is {name}, which is not under {_listed(extra)}"
    if name.startswith(_NEVER) or target.startswith(_NEVER):
        return f"'{target}' is refused: it builds other objects by name, reads the command line or runs jobs"
    if definition.kind not in ("class", "function"):
        return f"'{target}' is refused: it is neither a class nor a function of a module"
    if name.startswith(LIBRARIES) and not name.startswith((*OWN, *extra)) and definition.kind != "class":
        return f"'{target}' is refused: only classes are allowed from {' and '.join(LIBRARIES)}"
    return None


def _remedy(target: str) -> str:
    module, _, name = target.rpartition(".")
    near = get_close_matches(f"{module}.", LIBRARIES, n=1, cutoff=0.8)
    if near:
        return f"did you mean {near[0]}{name}?"
    return "code of your own package is let in by allow_targets=[mylab.] on the command line"


def _listed(extra: Sequence[str]) -> str:
    return ", ".join((*OWN, *LIBRARIES, *extra))
