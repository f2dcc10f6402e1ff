"""Accuracy against response length, over the evaluations of a multirun with different decoding settings.

    cft evaluate -m decoding=stop_scaling decoding.scale=0,1,2 num_samples=0 hydra.sweep.dir=outputs/evaluate/stop_scaling
    python -m experiments.accuracy_by_length outputs/evaluate/stop_scaling

Prints one row per evaluation, sorted by length: mean tokens of the greedy responses, the fraction cut off, and accuracy, with
95 % intervals over problems.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from cft.console import console
from cft.evaluation.intervals import Interval
from cft.report.arm_names import name_of
from cft.report.read import collect

TOKENS, CUT_OFF, ACCURACY = "eval/response_tokens", "eval/cut_off_rate", "eval/accuracy"


@dataclass(frozen=True, slots=True)
class Point:
    """Results of one evaluation. label: its arm."""

    label: str
    tokens: Interval
    cut_off: Interval
    accuracy: Interval


def curve(folders: Sequence[Path]) -> list[Point]:
    """Points of all evaluations in the folders. Raises ReportError if there are none."""
    points = [
        Point(name_of(run.arm), *(run.metrics[name] for name in (TOKENS, CUT_OFF, ACCURACY)))
        for run in collect(folders)
    ]
    return sorted(points, key=lambda point: point.tokens.value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of evaluations, such as that of a multirun")
    table = Table("arm", "mean tokens", "cut off", "accuracy")
    for point in curve(parser.parse_args().folders):
        rates = (
            f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]".replace("[", r"\[") for i in (point.cut_off, point.accuracy)
        )
        tokens = f"{point.tokens.value:.1f} [{point.tokens.low:.1f}, {point.tokens.high:.1f}]".replace("[", r"\[")
        table.add_row(point.label, tokens, *rates)
    console.print(table)


if __name__ == "__main__":
    main()
