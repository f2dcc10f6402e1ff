"""pass@k of each arm for every k up to the number of samples, from how many samples of each problem were right."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cft.evaluation.intervals import Interval, two_way_bootstrap
from cft.evaluation.metrics import pass_at_k
from cft.report.arms import Arm, Comparison

MAX_POINTS = 24  # of a curve: beyond that the values of k are spread evenly over their logarithm


@dataclass(frozen=True, slots=True)
class PassCurve:
    """pass@k by k, with its interval over seeds and problems."""

    arm: str
    points: dict[int, Interval]


def pass_curves(comparison: Comparison, *, seed: int = 0) -> list[PassCurve]:
    """Of the arms whose runs recorded enough; empty without samples."""
    found = [(arm, _counts(arm)) for arm in comparison.arms]
    return [
        PassCurve(arm.label, {k: _at(right_SP, samples, k, seed=seed) for k in _ks(samples)})
        for arm, counted in found
        if counted is not None
        for right_SP, samples in [counted]
    ]


def records(comparison: Comparison, curves: Sequence[PassCurve]) -> Iterator[Mapping[str, object]]:
    """Rows of pass_at_k.csv."""
    for curve in curves:
        for k, interval in curve.points.items():
            place = {"benchmark": comparison.benchmark, "split": comparison.split, "arm": curve.arm}
            yield {**place, "k": k, "pass_at_k": interval.value, "low": interval.low, "high": interval.high}


def _counts(arm: Arm) -> tuple[np.ndarray, int] | None:
    """(right samples [seeds, problems], samples of a problem), None where a run did not sample or not equally often."""
    samples = {(run.facts.get("evaluation") or {}).get("num_samples") for run in arm.runs}
    rows = [run.per_problem.get("num_right") or _from_pass_at_1(run.per_problem, samples) for run in arm.runs]
    if len(samples) != 1 or not rows or not all(rows):
        return None
    count = next(iter(samples))
    return (np.array(rows, dtype=np.int64), count) if isinstance(count, int) and count > 0 else None


def _from_pass_at_1(columns: Mapping[str, Sequence[float]], samples: Collection[object]) -> list[int] | None:
    """Runs from before the counts were recorded: pass@1 is their share."""
    count = next(iter(samples)) if len(samples) == 1 else None
    column = columns.get("pass_at_1")
    return [round(value * count) for value in column] if column and isinstance(count, int) else None


def _at(right_SP: np.ndarray, samples: int, k: int, *, seed: int) -> Interval:
    by_count = np.array([pass_at_k(samples, right, k) for right in range(samples + 1)])
    return two_way_bootstrap(by_count[right_SP], seed=seed, within=(0.0, 1.0))


def _ks(samples: int) -> list[int]:
    if samples <= MAX_POINTS:
        return list(range(1, samples + 1))
    return sorted({round(k) for k in np.geomspace(1, samples, MAX_POINTS)})
