"""Data sets trained one after the other: what was learned of each, and what of it was lost.

    A[i, j]             accuracy on test set j after the training on data set i = 1 .. T; i = 0: before all of them
    mean accuracy       mean over j of A[T, j]
    along the way       mean over i of the mean over j <= i of A[i, j]
    forgetting          mean over j < T of  max over i = 1 .. T of A[i, j]  -  A[T, j]
    backward transfer   mean over j < T of  A[T, j] - A[j, j]

A maximum of several noisy numbers is too high on average, and with it forgetting is; backward transfer compares two given rows.
Intervals resample problems, rows of one column together; the row of a maximum is taken as given. They say nothing of seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from cft.evaluation.intervals import Interval, bootstrap_interval, deviations, paired_draws
from cft.report.figures import INK, MUTED
from cft.report.page import PageTable, Section
from cft.report.read import ReportError
from cft.report.tables import MISSING, shown, signed
from cft.report.text import one_line, printable
from cft.runs.results import RESULTS, RunResults
from cft.runs.run import SEQUENCE

RESAMPLES = 2000
Column = NDArray[np.float64]  # [P] 1 for a right greedy response, else 0
LEAD = (
    "Accuracy on each test set after each training, with 95 % intervals over problems. Forgetting: how far the last model is "
    "below the best one after any training, mean over all test sets but the last; backward transfer: below or above the model "
    "that had just been trained on it. A maximum of noisy numbers is too high on average, and so is forgetting."
)


@dataclass(frozen=True, slots=True)
class Matrix:
    """One sequence. data: names in the order of training. right: [T + 1][T], None where a test has no results yet."""

    name: str
    data: tuple[str, ...]
    right: tuple[tuple[Column | None, ...], ...]

    @property
    def is_whole(self) -> bool:
        return all(column is not None for row in self.right for column in row)

    def accuracy(self, after: int, test: int) -> Interval | None:
        column = self.right[after][test]
        return None if column is None else bootstrap_interval(column, rate=True)

    def measures(self) -> dict[str, Interval]:
        """By name, of a whole matrix."""
        right = [[_known(column) for column in row] for row in self.right]
        last, tests = len(self.data), range(len(self.data))
        means = np.array([[column.mean() for column in row] for row in right])
        best = [1 + int(np.argmax(means[1:, j])) for j in tests]  # the first of equals
        # Weight of A[i, j] in the mean along the way: it is one mean per test set, since A[1 .. T, j] share their problems.
        weight = np.array([0.0, *(1 / (i * last) for i in range(1, last + 1))])
        along = [weight[j + 1 :] @ np.array([row[j] for row in right[j + 1 :]]) for j in tests]  # [P] by test set
        total = [weight[j + 1 :].sum() for j in tests]
        return {
            "mean accuracy": _mean([_draws(right[last][j], seed=j) for j in tests]),
            "mean accuracy along the way": _mean(
                [_draws(along[j] / total[j], seed=j) for j in tests], weights=[total[j] for j in tests]
            ),
            "forgetting": _mean([_apart(right[best[j]][j], right[last][j], seed=j) for j in tests[:-1]]),
            "backward transfer": _mean([_apart(right[last][j], right[j + 1][j], seed=j) for j in tests[:-1]]),
        }


def sequences(folders: Sequence[Path]) -> list[Matrix]:
    """Of the folders of pipelines that are given or lie below. Raises ReportError, ResultsError."""
    files = {path.resolve(): None for folder in folders for path in sorted(folder.rglob(SEQUENCE))}
    return [_read(path) for path in files]


def sections(found: Sequence[Matrix], add_figure: Callable[[str, Figure, str], list]) -> list[Section]:
    """Of the page: the measures of all, then each matrix. add_figure: name, figure, caption -> what the page shows."""
    made = []
    if any(matrix.is_whole for matrix in found):
        made.append(Section("Continual training", LEAD, [PageTable(measures_frame(found, text=True))]))
    for number, matrix in enumerate(found, 1):
        name = "continual" if len(found) == 1 else f"continual-{number}"
        caption = f"Accuracy after each training: {matrix.name}"
        notes = () if matrix.is_whole else ("The sequence is not finished: its measures are of the whole matrix.",)
        made.append(
            Section(
                f"{one_line(matrix.name, limit=60)}: {' -> '.join(matrix.data)}",
                tables=[PageTable(_cells(matrix), notes=notes)],
                figures=add_figure(name, heat_map(matrix), caption),
            )
        )
    return made


def print_measures(found: Sequence[Matrix]) -> None:
    """To the terminal, a line a measure."""
    for matrix in found:
        if not matrix.is_whole:
            print(printable(f"{matrix.name}: the sequence is not finished"))
            continue
        said = [f"{name} {shown(interval)}" for name, interval in matrix.measures().items()]
        print(printable(f"{matrix.name} ({' -> '.join(matrix.data)}): {', '.join(said)}"))


def matrix_frame(found: Sequence[Matrix]) -> pd.DataFrame:
    """A row a cell."""
    return pd.DataFrame(
        {
            "sequence": matrix.name,
            "after": after,
            "trained_on": matrix.data[after - 1] if after else "",
            "test": name,
            "accuracy": interval.value,
            "low": interval.low,
            "high": interval.high,
            "problems": len(_known(matrix.right[after][test])),
        }
        for matrix in found
        for after in range(len(matrix.right))
        for test, name in enumerate(matrix.data)
        if (interval := matrix.accuracy(after, test)) is not None
    )


def measures_frame(found: Sequence[Matrix], *, text: bool = False) -> pd.DataFrame:
    """A row a whole sequence. text: for people."""
    rows = []
    for matrix in [matrix for matrix in found if matrix.is_whole]:
        row: dict[str, object] = {"sequence": matrix.name}
        for name, interval in matrix.measures().items():
            if text:
                row[name] = signed(interval) if name == "backward transfer" else shown(interval)
            else:
                key = name.replace(" ", "_")
                row |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
        rows.append(row)
    return pd.DataFrame(rows)


def heat_map(matrix: Matrix) -> Figure:
    """Accuracies as colors and numbers, the data set that a row was trained on framed."""
    tests = len(matrix.data)
    figure = Figure(figsize=(1.6 + 1.05 * tests, 1.1 + 0.42 * (tests + 1)), layout="constrained")
    axes = figure.add_subplot()
    nothing = np.full((tests + 1, tests), np.nan)
    values = np.array([[np.nan if c is None else c.mean() for c in row] for row in matrix.right]) if tests else nothing
    axes.imshow(values, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for i, j in np.ndindex(values.shape):
        if np.isfinite(values[i, j]):
            color = "white" if values[i, j] > 0.6 else INK
            axes.text(j, i, f"{values[i, j]:.3f}", ha="center", va="center", fontsize=8.5, color=color)
        if i == j + 1:
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.4))
    axes.set_xticks(range(tests), [one_line(name, limit=18) for name in matrix.data])
    axes.set_yticks(range(tests + 1), [one_line(name, limit=26) for name in _rows(matrix)])
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
    axes.tick_params(labelsize=8.5, colors=INK, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.suptitle("accuracy on ...", fontsize=8.5, color=MUTED, x=0.01, ha="left")
    return figure


def _rows(matrix: Matrix) -> list[str]:
    return ["before", *(f"after {name}" for name in matrix.data)]


def _cells(matrix: Matrix) -> pd.DataFrame:
    rows = []
    for after, name in enumerate(_rows(matrix)):
        found = [matrix.accuracy(after, test) for test in range(len(matrix.data))]
        texts = {test: MISSING if i is None else shown(i) for test, i in zip(matrix.data, found, strict=True)}
        rows.append({"": name, **texts})
    return pd.DataFrame(rows)


def _read(path: Path) -> Matrix:
    try:
        told = json.loads(path.read_bytes())
        data, tests = tuple(map(str, told["data"])), told["tests"]
        whole = len(tests) == len(data) + 1 and all(len(row) == len(data) for row in tests)
    except (ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path}: damaged ({error}); the same cft pipeline command writes it again") from error
    if not whole:
        raise ReportError(
            f"{path}: damaged, it names other tests than one of each data set before and after each training"
        )
    right = tuple(tuple(_right(path.parent / str(step)) for step in row) for row in tests)
    for j, name in enumerate(data):
        if len({len(column) for row in right if (column := row[j]) is not None}) > 1:
            raise ReportError(f"{path.parent}: tests on {name} are of different problems; give all of them one limit")
    return Matrix(path.parent.name, data, right)


def _right(folder: Path) -> Column | None:
    if not (folder / RESULTS).is_file():
        return None
    found = RunResults.read(folder / RESULTS).per_problem
    by_id = dict(zip(found["id"], found["correct"], strict=True))
    return np.array([float(by_id[one]) for one in sorted(by_id)])  # rows of one column are paired by problem


def _known(column: Column | None) -> Column:
    assert column is not None, "the matrix is whole"
    return column


Draws = tuple[float, NDArray[np.float64]]


def _draws(column: Column, *, seed: int) -> Draws:
    value = float(column.mean())
    rng = np.random.default_rng(seed)
    return value, value + deviations(column[None], resamples=RESAMPLES, rng=rng, rate=True)


def _apart(a: Column, b: Column, *, seed: int) -> Draws:
    if np.array_equal(a, b):
        return 0.0, np.zeros(RESAMPLES)
    return paired_draws(a[None], b[None], pair_seeds=True, resamples=RESAMPLES, seed=seed)


def _mean(parts: Sequence[Draws], *, weights: Sequence[float] | None = None) -> Interval:
    """Mean over independent test sets; weights: sum to 1, None = equal."""
    drawn = np.average([draws for _, draws in parts], axis=0, weights=weights)
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = np.average([value for value, _ in parts], weights=weights)
    return Interval(float(value), float(low), float(high))
