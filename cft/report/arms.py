"""Arms with their measurements and differences: the data behind tables, figures and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cft.evaluation.intervals import Interval
from cft.report.arm_names import ArmName, Method
from cft.report.read import ACCURACY, Run

MARK = " †"

Scope = Literal["seeds and problems", "problems", "seeds", "one value"]


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric of an arm. scope: what its interval was bootstrapped over."""

    interval: Interval
    scope: Scope


@dataclass(frozen=True, slots=True)
class Contrast:
    """An arm minus its reference in one metric, paired by problem.

    Args:
        interval: Of the difference.
        p: Two-sided.
        holm: p corrected for all contrasts of this metric in the report.
        test: Name of the test.
    """

    interval: Interval
    p: float
    holm: float
    test: str


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm with its runs, by seed.

    Args:
        named: Its settings and label.
        runs: Empty for the base model as recorded by trained runs.
        metrics: By name, "eval/accuracy" first.
        reference: Label of the arm that it is contrasted with, "" for none.
        contrasts: By metric.
        marks: Differences in training from the arm `marked_against` other than the method: budget, normalizer, data.
    """

    named: ArmName
    runs: tuple[Run, ...]
    metrics: dict[str, Measured]
    reference: str = ""
    contrasts: dict[str, Contrast] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    marked_against: str = ""

    @property
    def label(self) -> str:
        return self.named.label

    @property
    def method(self) -> Method:
        return self.named.method

    @property
    def reference_marks(self) -> tuple[str, ...]:
        """Marks on the differences from the reference."""
        return self.marks if self.contrasts and self.reference == self.marked_against else ()

    @property
    def marked_label(self) -> str:
        """The label, with a dagger if no difference carries it."""
        return self.label + (MARK if self.marks and not self.reference_marks else "")

    @property
    def difference(self) -> Interval | None:
        """The contrast in accuracy with the reference."""
        contrast = self.contrasts.get(ACCURACY)
        return None if contrast is None else contrast.interval

    def mean(self, name: str) -> float | None:
        """Mean over seeds of a number such as train_seconds, None if no run has it."""
        values = [value for run in self.runs if (value := getattr(run.results, name)) is not None]
        return float(np.mean(values)) if values else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arms measured on the same problems.

    Args:
        benchmark: Name.
        split: Of the benchmark.
        problems: Number of problems that all arms share.
        arms: In the order of the tables.
        varying: Names of the values that differ among them.
        notes: Caveats for the reader.
    """

    benchmark: str
    split: str
    problems: int
    arms: tuple[Arm, ...]
    varying: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def runs(self) -> list[Run]:
        return [run for arm in self.arms for run in arm.runs]


def values_of(name: str, runs: tuple[Run, ...]) -> np.ndarray | None:
    """Seeds x problems, None where a problem's value is not known."""
    rows = [run.per_problem.get(metric_column(name)) for run in runs]
    return np.array(rows, dtype=np.float64) if all(map(is_known, rows)) else None


def metric_column(metric: str) -> str:
    return "correct" if metric == ACCURACY else metric.removeprefix("eval/")


def is_known(column: Sequence[Any] | None) -> bool:
    return bool(column) and all(isinstance(value, int | float) for value in column)
