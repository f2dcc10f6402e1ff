"""Variables of a chat template, such as `enable_thinking`, and a check that given variables are used."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


@lru_cache(maxsize=16)
def switches(environment: Environment, template: str) -> frozenset[str]:
    """Variables that a template reads and does not set itself, except special tokens."""
    from jinja2.meta import find_undeclared_variables

    read = find_undeclared_variables(environment.parse(template)) - environment.globals.keys()
    return frozenset(name for name in read if not name.endswith("_token"))


def unread(given: Collection[str], read: Collection[str], *, of: str) -> str:
    """Error message for a variable that the template does not read; "" if all are read. of: name of the template."""
    unknown = [name for name in given if name not in read and not name.endswith("_token")]
    if not unknown:
        return ""
    near = get_close_matches(unknown[0], read, n=1)
    meant = f", did you mean {near[0]}?" if near else ""
    found = f"it reads {', '.join(sorted(read))}{meant}" if read else "it reads none"
    return (
        f"prompt.template_kwargs.{unknown[0]}: {of} reads no such variable, so it would have no effect; {found}. Remove "
        "it, or name one that is read"
    )
