"""What a run logged while it trained: metrics.csv as curves, and its values on validation rows at the best epoch."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cft.report.arms import Arm, Comparison

LEARNING = ("train/loss", "val/loss", "val/accuracy")
GROUPS = ("loss_critical", "loss_other", "entropy_critical", "entropy_other")
Points = list[tuple[int, float]]  # (optimizer step, value), by step


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of one run."""

    arm: str
    seed: int
    metric: str
    points: Points


def at_best_epoch(path: Path, *, epoch: int) -> dict[str, float]:
    """val/loss_critical, val/entropy_other, ... of that epoch (from 0); empty without a metrics.csv."""
    wanted = [f"val/{name}" for name in GROUPS]
    found: dict[str, float] = {}
    for row in _rows(path):
        if row.get("epoch") == str(epoch):
            found |= {name: value for name in wanted if (value := _number(row.get(name))) is not None}
    return found


def curves_of(comparisons: Sequence[Comparison]) -> list[Curve]:
    """Every logged train/ and val/ metric of every run, each training once although it may stand in several comparisons."""
    found: list[Curve] = []
    seen: set[Path] = set()
    for run, label in [(run, arm.label) for comparison in comparisons for arm in comparison.arms for run in arm.runs]:
        if run.logs not in seen:
            seen.add(run.logs)
            points = _points(run.logs / "metrics.csv")
            found += [Curve(label, run.seed, metric, points) for metric, points in points.items()]
    return found


def mean_curve(curves: Sequence[Curve]) -> Points:
    """Mean over runs at the steps that all of them logged."""
    values = [dict(curve.points) for curve in curves]
    shared = sorted(set.intersection(*(set(points) for points in values))) if values else []
    return [(step, float(np.mean([points[step] for points in values]))) for step in shared]


def records(curves: Sequence[Curve]) -> Iterator[Mapping[str, object]]:
    """Rows of curves.csv."""
    for curve in curves:
        for step, value in curve.points:
            yield {"arm": curve.arm, "seed": curve.seed, "metric": curve.metric, "step": step, "value": value}


def by_arm(curves: Sequence[Curve], *, metric: str) -> dict[str, list[Curve]]:
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        if curve.metric == metric:
            groups.setdefault(curve.arm, []).append(curve)
    return groups


def _points(path: Path) -> dict[str, Points]:
    found: dict[str, dict[int, float]] = {}
    for row in _rows(path):
        step = _number(row.get("step"))
        for name, text in row.items():
            if step is None or not name or not name.startswith(("train/", "val/")):
                continue
            if (value := _number(text)) is not None:
                found.setdefault(name, {})[int(step)] = value
    return {name: sorted(points.items()) for name, points in found.items()}


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if path.is_file():
        with path.open(newline="", encoding="utf-8", errors="replace") as handle:
            yield from csv.DictReader(handle)


def _number(text: object) -> float | None:
    """None for an empty cell, a half-written line or a value that is not finite."""
    try:
        value = float(text) if isinstance(text, str) and text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def labels_of(comparisons: Sequence[Comparison]) -> list[str]:
    """Labels of arms that have runs, in the order of the tables: the same color everywhere."""
    arms: list[Arm] = [arm for comparison in comparisons for arm in comparison.arms if arm.runs]
    return list(dict.fromkeys(arm.label for arm in arms))
