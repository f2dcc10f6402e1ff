"""Estimates the remaining time of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cft.console import duration


@dataclass(slots=True)
class Clock:
    """Remaining time, from an estimate that is scaled by the ratio of spent to expected time of the finished steps.

    The ratio includes a fifth of the whole estimate as if spent as expected, so that a first short step hardly changes it.

    Args:
        steps: expected seconds, by the name of a step or a prefix of it.
        to_do: names of the steps that are not done.
        expected: expected seconds of the finished steps.
        spent: seconds that the finished steps took.
    """

    steps: Mapping[str, float]
    to_do: list[str] = field(default_factory=list)
    expected: float = 0.0
    spent: float = 0.0
    _trust: float = field(init=False)

    def __post_init__(self) -> None:
        self._trust = sum(map(self._of, self.to_do)) / 5

    def left(self, name: str) -> str:
        """Text for the heading of a step."""
        rest = sum(map(self._of, self.to_do[self.to_do.index(name) :])) if name in self.to_do else 0.0
        if self.expected:
            rest *= (self.spent + self._trust) / (self.expected + self._trust)
        return f" (about {duration(rest)} left)" if rest else ""

    def done(self, name: str, seconds: float | None) -> None:
        """Mark a step as done. seconds: its duration; None if it failed, or was done in an earlier run."""
        if seconds is not None and name in self.to_do:
            self.spent += seconds
            self.expected += self._of(name)
        self.to_do = [one for one in self.to_do if one != name]

    def _of(self, name: str) -> float:
        kinds = [kind for kind in self.steps if name == kind or name.startswith(f"{kind}-")]
        return self.steps[max(kinds, key=len)] if kinds else 0.0
