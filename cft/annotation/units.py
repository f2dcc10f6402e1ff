"""Units: fixed slices of a split that are annotated and committed as a whole, and which of them remain to be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cft.files import sha256_json
from cft.types import Problem

Records = Mapping[int, dict[str, Any]]  # commit records by unit number


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration requests: the first `asked` of the split's `problems`, in units of `unit_size`.

    every_outcome: try all alternatives of each tested position. every_position: test all positions.
    fills_only: only extend committed units; annotate no new ones.
    """

    problems: Sequence[Problem]
    asked: int
    unit_size: int
    num_alternatives: int
    every_outcome: bool
    fills_only: bool
    every_position: bool = True

    def request(self) -> dict[str, Any]:
        """Settings, beyond the fingerprint, that must be equal in all shards of one annotation. JSON."""
        return {
            "problems": self.asked,
            "num_alternatives": self.num_alternatives,
            "complete": self.every_outcome,
            "fills_only": self.fills_only,
            **({} if self.every_position else {"every_position": False}),
        }

    def units(self, records: Records) -> list[Sequence[Problem]]:
        """The problems of each unit, by unit number.

        Units committed beyond `asked` are included, and so are gaps before them: interrupted shards leave gaps, and a run that
        requests fewer problems must not mark an annotation with gaps as complete.
        """
        reached = [u * self.unit_size + record["counts"]["problems"] for u, record in records.items()]
        wanted = min(max([self.asked, *reached]), len(self.problems))
        return [self.problems[u : min(u + self.unit_size, wanted)] for u in range(0, wanted, self.unit_size)]

    def facts(self, record: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Entries of the commit record of a unit that is as requested; `every_position` is present only if it is false.

        record: the earlier record if the unit was extended, None for a new unit.
        """
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
        """Committed units that lack requested alternatives, outcomes or positions."""
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
        """Whether a committed unit holds the problems of `unit`, and possibly the following ones of the split."""
        count = record["counts"]["problems"]
        start = u * self.unit_size
        following = self.problems[start : start + self.unit_size]
        return count >= len(unit) and record["problem_ids"] == ids_hash(following[:count])


def ids_hash(problems: Sequence[Problem]) -> str:
    return sha256_json([problem.id for problem in problems])
