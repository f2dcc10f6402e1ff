"""Accuracy and macro F1 of evaluations whose answers are options from a small set, such as pipeline=tcd's.

    cft pipeline pipeline=tcd
    python -m experiments.robustness outputs/pipeline/tcd

Prints one row per evaluation, with 95 % intervals, percentiles of a bootstrap over problems. The answer of a response is that
extracted by the verifier; a response without an answer counts as none of the options.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table

from cft.console import console
from cft.errors import UserError
from cft.evaluation.intervals import Interval
from cft.evaluation.metrics import macro_f1
from cft.types import Outcome

RESAMPLES = 2000


class NoEvaluations(UserError, ValueError):
    """The given folders contain no evaluation."""


@dataclass(frozen=True, slots=True)
class Point:
    """Results of one evaluation."""

    name: str
    problems: int
    accuracy: Interval
    macro_f1: Interval


def points(folders: Sequence[Path]) -> list[Point]:
    """Results of all evaluations in the folders, oldest first."""
    files = [path for folder in folders for path in folder.rglob("samples.parquet")]
    if not files:
        raise NoEvaluations(
            f"{', '.join(map(str, folders))}: expected folders of cft evaluate, with samples.parquet below"
        )
    return [_point(path) for path in sorted(files, key=lambda path: path.stat().st_mtime)]


def _point(path: Path) -> Point:
    greedy = [one for one in pq.read_table(path).to_pylist() if one["sample"] < 0]
    right = np.array([one["outcome"] == Outcome.RIGHT for one in greedy], dtype=float)
    gold = np.array([one["answer"] for one in greedy])
    # A right response counts as the gold answer, in any spelling.
    said = np.array([one["answer"] if one["outcome"] == Outcome.RIGHT else one["extracted"] for one in greedy])
    said = np.where((right == 0) & (said == gold), "", said)
    draws = np.random.default_rng(0).integers(0, len(greedy), (RESAMPLES, len(greedy)))
    f1 = [macro_f1(said[draw].tolist(), gold[draw].tolist()) for draw in draws]
    return Point(
        path.parent.name,
        len(greedy),
        _interval(float(right.mean()), right[draws].mean(1)),
        _interval(macro_f1(said.tolist(), gold.tolist()), f1),
    )


def _interval(value: float, draws: Sequence[float] | np.ndarray) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of evaluations, such as that of a pipeline")
    table = Table("evaluation", "problems", "accuracy", "macro F1")
    for point in points(parser.parse_args().folders):
        shown = (
            f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]".replace("[", r"\[") for i in (point.accuracy, point.macro_f1)
        )
        table.add_row(point.name, str(point.problems), *shown)
    console.print(table)


if __name__ == "__main__":
    main()
