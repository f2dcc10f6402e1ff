"""Groups of rows: a problem's chosen responses and rejected ones, for losses that compare them (`cft/losses/group.py`).

An epoch contains each group once: one chosen row and up to m rejected ones. The draw depends only on seed, epoch and the name
of the group. Within a group, rows of each kind are used in turn, in an order that depends on seed and group, so that no row is
repeated before all others have been used.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cft.data.batches import TokenRow


@dataclass(frozen=True, slots=True)
class Group:
    """A group of rows. chosen, rejected: indices of rows, at least one each."""

    name: str
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def whole_groups(rows: Sequence[TokenRow]) -> tuple[list[TokenRow], Counter[str]]:
    """(rows of groups with both chosen and rejected rows, reason -> number of dropped groups)."""
    kinds: dict[str, set[bool]] = {}
    for row in rows:
        kinds.setdefault(row.group, set()).add(row.chosen)
    dropped = Counter(
        {
            "problems_without_a_rejected_response": sum(kinds == {True} for kinds in kinds.values()),
            "problems_without_a_chosen_response": sum(kinds == {False} for kinds in kinds.values()),
        }
    )
    return [row for row in rows if len(kinds[row.group]) == 2], dropped


def groups_of(rows: Sequence[TokenRow]) -> list[Group]:
    """The groups of `rows`, in the order of their first rows. Every group must have both kinds of rows."""
    members: dict[str, tuple[list[int], list[int]]] = {}
    for i, row in enumerate(rows):
        members.setdefault(row.group, ([], []))[0 if row.chosen else 1].append(i)
    return [Group(name, tuple(chosen), tuple(rejected)) for name, (chosen, rejected) in members.items()]


def drawn(group: Group, *, rejected: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The group's rows in an epoch: the chosen one, then at most `rejected` rejected ones."""
    return (
        *_in_turn(group.chosen, 1, name=f"chosen\x1f{group.name}", seed=seed, epoch=epoch),
        *_in_turn(group.rejected, rejected, name=f"rejected\x1f{group.name}", seed=seed, epoch=epoch),
    )


def _in_turn(rows: tuple[int, ...], wanted: int, *, name: str, seed: int, epoch: int) -> tuple[int, ...]:
    if wanted >= len(rows):
        return rows
    digest = hashlib.blake2b(f"{seed}\x1f{name}".encode(), digest_size=8).digest()
    order = np.random.default_rng(int.from_bytes(digest)).permutation(len(rows))
    return tuple(rows[order[(epoch * wanted + k) % len(rows)]] for k in range(wanted))
