"""The part of a config that describes one object, as plain values, until it is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Part(Mapping[str, Any]):
    """The input of `cft.config.build.build`; its settings are read like those of a dict.

    Args:
        node: `_target_` and that constructor's arguments, resolved.
        allowed: Target prefixes from the command line (allow_targets), in addition to the package's own and the libraries'.
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
