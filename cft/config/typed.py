"""From the tree of a checked config to the dataclass of its stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from cft.config.part import Part
from cft.config.schema import keys_of

Config = TypeVar("Config")


def typed(schema: type[Config], tree: Mapping[str, Any], *, allowed: tuple[str, ...] = ()) -> Config:
    """tree: resolved and without errors. allowed: target prefixes that the command line gives."""
    values: dict[str, Any] = {}
    for name, key in keys_of(schema).items():
        value = tree[name] if key.required or key.record else tree.get(name, {})
        if key.record is not None:
            values[name] = typed(key.record, value, allowed=allowed)
        elif key.many:
            values[name] = {one: Part(node, allowed=allowed) for one, node in value.items()}
        else:
            values[name] = Part(value, allowed=allowed) if key.node else value
    return schema(**values)


def plain(config: Any) -> dict[str, Any]:
    """The tree that `typed` makes the same config of."""
    return {entry.name: _plain(getattr(config, entry.name)) for entry in fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.node
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return plain(value) if hasattr(value, "__dataclass_fields__") else value
