"""Units: the fixed slices of a split that are annotated and committed whole, and which of them are still to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cft.files import sha256_json
from cft.types import Problem

Records = Mapping[int, dict[str, Any]]  # commit records by unit number


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration asks of an annotation: the first `asked` of the split's `problems`, in units of `unit_size`.

    every_outcome: no alternative of a position that is tried is left untried. every_position: no position is.
    fills_only: committed units are extended, none is annotated afresh.
    """

    problems: Sequence[Problem]
    asked: int
    unit_size: int
    num_alternatives: int
    every_outcome: bool
    fills_only: bool
    every_position: bool = True

    def request(self) -> dict[str, Any]:
        """What the shards of one annotation must have in common beyond its fingerprint. JSON."""
        return {
            "problems": self.asked,
            "num_alternatives": self.num_alternatives,
            "complete": self.every_outcome,
            "fills_only": self.fills_only,
            **({} if self.every_position else {"every_position": False}),
        }

    def units(self, records: Records) -> list[Sequence[Problem]]:
        """The problems of each unit, by its number.

        What is committed beyond `asked` is part of it, and so are gaps before that: shards that were interrupted leave
        gaps, and a run that asks for less shall not pass off the rest as an annotation of the first problems.
        """
        reached = [u * self.unit_size + record["counts"]["problems"] for u, record in records.items()]
        wanted = min(max([self.asked, *reached]), len(self.problems))
        return [self.problems[u : min(u + self.unit_size, wanted)] for u in range(0, wanted, self.unit_size)]

    def facts(self, record: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the commit record of a unit that is as requested says of it. record: of the unit that was filled, None of a
        fresh one. Where every position was tried nothing is said of positions."""
        every_position = (
            self.every_position if record is None else self.fills_only or record.get("every_position", True)
        )
        return {
            "num_alternatives": max(self.num_alternatives, record["num_alternatives"] if record else 0),
            "complete": self.every_outcome,
            **({} if every_position else {"every_position": False}),
        }

    def to_annotate(self, records: Records) -> list[int]:
        if self.fills_only:
            return []
        units = self.units(records)
        return [u for u in range(len(units)) if u not in records or not self._holds(records[u], u, unit=units[u])]

    def to_fill(self, records: Records) -> list[int]:
        """Committed units with fewer alternatives than asked for, or with untried ones where every outcome is."""
        return [
            u
            for u, record in records.items()
            if record["num_alternatives"] < self.num_alternatives
            or (self.every_outcome and not record["complete"])
            or (self.fills_only and not record.get("every_position", True))
        ]

    def to_do(self, records: Records) -> set[int]:
        return {*self.to_annotate(records), *self.to_fill(records)}

    def _holds(self, record: dict[str, Any], u: int, *, unit: Sequence[Problem]) -> bool:
        """Whether a committed unit is `unit`, or continues it in the order of the split: nothing is undone."""
        count = record["counts"]["problems"]
        start = u * self.unit_size
        following = self.problems[start : start + self.unit_size]
        return count >= len(unit) and record["problem_ids"] == ids_hash(following[:count])


def ids_hash(problems: Sequence[Problem]) -> str:
    return sha256_json([problem.id for problem in problems])
