"""A place of a config that an option fills: the object it names, as plain values, until something builds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Part(Mapping[str, Any]):
    """What `cft.config.build.build` makes an object of; its settings are read as from a dict.

    Args:
        node: `_target_` and that constructor's arguments, resolved.
        allowed: Target prefixes beside ours and the libraries', which the command line alone may give (allow_targets).
    """

    __slots__ = ("allowed", "node")

    def __init__(self, node: Mapping[str, Any], *, allowed: tuple[str, ...] = ()) -> None:
        self.node = dict(node)
        self.allowed = allowed

    def __getitem__(self, key: str) -> Any:
        return self.node[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.node)

    def __len__(self) -> int:
        return len(self.node)

    def __repr__(self) -> str:
        return f"Part({self.node!r})"
