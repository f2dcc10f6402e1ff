"""Positions by bisection: where a prefix of the response starts, or stops, to be enough for the right answer.

    s(t) = whether the model's own greedy continuation of the response before position t ends right; s(R) = whether it does

Token t is a *transition* if s(t) and s(t + 1) differ: the model succeeds with it and fails without it, or vice versa. Between
two positions with different s there is at least one transition, and bisection finds one of them with log2(distance)
continuations. Between two positions with equal s there may be none or any even number, none of which is found; `segments`
first divides the response, so that fewer are missed. Positions that are found are transitions; nothing is known about the
others, which stay untried.

A model's own greedy response continues as itself from each of its prefixes and has no transitions: bisection is for responses
of other origin.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from cft.positions.base import Expected, ResponseView, Search
from cft.ranges import AtLeastOne, require_in_range
from cft.types import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisect:
    """The transitions that bisection finds; for given responses.

    Args:
        segments: number of equal parts that a response is divided into first; one transition is found in each part whose ends
            differ. 1 finds one in each response whose outcome differs from the model's own.
    """

    name: ClassVar[str] = "bisect"
    needs_entropy: ClassVar[bool] = False
    probes: ClassVar[bool] = True

    segments: AtLeastOne

    def __post_init__(self) -> None:
        require_in_range(self)

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "segments": self.segments}

    def search(self, view: ResponseView) -> Search:
        length = len(view)
        edges = self._edges(length)
        right = {length: view.outcome == Outcome.RIGHT}
        if asked := [t for t in edges if t < length]:
            right |= {t: outcome == Outcome.RIGHT for t, outcome in (yield asked).items()}
        differing = [(a, b) for a, b in pairwise(edges) if right[a] != right[b]]
        while middles := {(a, b): (a + b) // 2 for a, b in differing if b - a > 1}:
            found = yield sorted(middles.values())
            right |= {t: outcome == Outcome.RIGHT for t, outcome in found.items()}
            # Exactly one of the two halves has ends that differ.
            differing = [
                (a, b) if m is None else (a, m) if right[a] != right[m] else (m, b)
                for a, b in differing
                for m in (middles.get((a, b)),)
            ]
        wanted = np.zeros(length, dtype=np.bool_)
        wanted[[a for a, _ in differing]] = True
        return wanted

    def expected(self, view: ResponseView) -> Expected:
        """As if the ends of one segment differed."""
        length = len(view)
        segments = max(1, len(self._edges(length)) - 1)
        return Expected(np.full(length, 1 / max(1, length)), segments + np.log2(max(1.0, length / segments)))

    def _edges(self, length: int) -> list[int]:
        return sorted({round(i * length / self.segments) for i in range(self.segments + 1)})
