"""Variables of a chat template, such as `enable_thinking`: which it reads, and which are given in vain."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


@lru_cache(maxsize=16)
def switches(environment: Environment, template: str) -> frozenset[str]:
    """Variables that a template reads and does not set itself, but for special tokens."""
    from jinja2.meta import find_undeclared_variables

    read = find_undeclared_variables(environment.parse(template)) - environment.globals.keys()
    return frozenset(name for name in read if not name.endswith("_token"))


def unread(given: Collection[str], read: Collection[str], *, of: str) -> str:
    """Why a variable that the template does not read is refused, "" where all are read. of: the template, for the message."""
    unknown = [name for name in given if name not in read and not name.endswith("_token")]
    if not unknown:
        return ""
    near = get_close_matches(unknown[0], read, n=1)
    meant = f", did you mean {near[0]}?" if near else ""
    found = f"it reads {', '.join(sorted(read))}{meant}" if read else "it reads none"
    return (
        f"prompt.template_kwargs.{unknown[0]}: {of} reads no such variable, so it would change nothing; {found}. Leave "
        "it out, or name one that is read"
    )
