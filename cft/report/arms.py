"""What a report is about: runs, the arms they form, comparisons of arms. Made by `cft/report/compare.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cft.errors import UserError
from cft.evaluation.intervals import Interval

Scope = Literal["seeds and problems", "problems", "seeds", "one value"]
ACCURACY = "eval/accuracy"
BASE = "base model"
MARK = " †"


class ReportError(UserError, ValueError):
    """Results that cannot be read or compared; the message names the file or the arms, and the remedy."""


@dataclass(frozen=True, slots=True)
class Run:
    """One results.json. arm: without the conditions of measurement. facts: the whole file, and those of its training.

    logs: where the training's metrics.csv lies, the run's own folder unless it evaluates another run's checkpoint.
    """

    folder: Path
    arm: dict[str, Any]
    seed: int
    metrics: dict[str, Interval]
    per_problem: dict[str, list[Any]]
    facts: dict[str, Any]
    logs: Path

    @property
    def measured_on(self) -> tuple[str, str]:
        return str(self.facts["benchmark"]), str(self.facts["split"])


class Runs(list[Run]):
    """Runs, and notes on those that are missing among them."""

    def __init__(self, runs: Iterable[Run] = (), *, notes: Sequence[str] = ()) -> None:
        super().__init__(runs)
        self.notes = tuple(notes)


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric of an arm. scope: what its interval was resampled over."""

    interval: Interval
    scope: Scope


@dataclass(frozen=True, slots=True)
class Contrast:
    """An arm minus its reference in one metric, paired by problem. p: two-sided. holm: p corrected for all contrasts of
    this metric in the report."""

    interval: Interval
    p: float
    holm: float
    test: str


@dataclass(frozen=True, slots=True)
class Arm:
    """Runs that differ in their seed alone.

    metrics: by name, "eval/accuracy" first. reference: label of the arm that contrasts (by metric) are with, "" for none.
    marks: what else than the method differs from the training of the arm `marked_against`: budget, normaliser, data.
    """

    label: str
    key: dict[str, Any]
    runs: tuple[Run, ...]
    metrics: dict[str, Measured]
    reference: str = ""
    contrasts: dict[str, Contrast] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    marked_against: str = ""

    @property
    def identity(self) -> str:
        return identity_of(self.key)

    @property
    def reference_marks(self) -> tuple[str, ...]:
        """Marks on the differences to the reference."""
        return self.marks if self.contrasts and self.reference == self.marked_against else ()

    @property
    def marked_label(self) -> str:
        """With a dagger where no difference bears it."""
        return self.label + (MARK if self.marks and not self.reference_marks else "")

    @property
    def difference(self) -> Interval | None:
        """In accuracy, to the reference."""
        contrast = self.contrasts.get(ACCURACY)
        return None if contrast is None else contrast.interval

    def mean_fact(self, name: str) -> float | None:
        """Mean over seeds of a number such as train_seconds, None where no run has it."""
        values = [run.facts[name] for run in self.runs if isinstance(run.facts.get(name), int | float)]
        return float(np.mean(values)) if values else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arms measured on the same problems. varying: keys of `arm` that differ. notes: what a reader must know."""

    benchmark: str
    split: str
    problems: int
    arms: tuple[Arm, ...]
    varying: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def runs(self) -> list[Run]:
        return [run for arm in self.arms for run in arm.runs]


def values_table(name: str, runs: tuple[Run, ...]) -> np.ndarray | None:
    """Seeds x problems, None where a problem's value is not known."""
    column = "correct" if name == ACCURACY else name.removeprefix("eval/")
    rows = [run.per_problem.get(column) for run in runs]
    if not all(row and all(isinstance(value, int | float) for value in row) for row in rows):
        return None
    return np.array(rows, dtype=np.float64)


def identity_of(key: dict[str, Any]) -> str:
    """Arms are the same if it is: labels are for people."""
    return json.dumps(key, sort_keys=True, default=str)


def is_base(key: dict[str, Any]) -> bool:
    """Neither trained by cft train nor a checkpoint of unknown training."""
    return "mask" not in key and "weights" not in key
