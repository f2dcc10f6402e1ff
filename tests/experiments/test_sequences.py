"""Data sets in sequence: measures over seeds are those of `cft/report/continual.py`, seed by seed."""

from __future__ import annotations

import numpy as np
import pytest

from cft.report import continual
from experiments.sequences import matrix, measures, table

DATA = ("a", "b", "c")


def right(seeds: int = 3, problems: int = 40) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.random((seeds, 4, 3, problems)) < rng.random((seeds, 4, 3, 1))).astype(float)


def test_each_measure_is_the_mean_over_seeds_of_that_of_the_report() -> None:
    found = right()
    expected = [
        continual.Matrix("x", DATA, tuple(tuple(found[s, i, j] for j in range(3)) for i in range(4))).measures()
        for s in range(3)
    ]
    for name, values in measures(found).items():
        assert values.shape == (3, 40)
        assert values.mean() == pytest.approx(np.mean([one[name].value for one in expected]), abs=1e-12), name


def test_rows_of_the_tests_become_the_matrix_and_the_table() -> None:
    cells = {(0, "base-on-a"): "00", (0, "base-on-b"): "01", (1, "base-on-a"): "00", (1, "base-on-b"): "01"}
    cells |= {(seed, f"a-on-{test}"): "11" for seed in (0, 1) for test in "ab"}
    cells |= {(0, "b-on-a"): "10", (1, "b-on-a"): "00", (0, "b-on-b"): "11", (1, "b-on-b"): "11"}
    found = matrix(cells, ["a", "b"], seeds=[0, 1])
    assert found.mean(3).tolist() == [[[0, 0.5], [1, 1], [0.5, 1]], [[0, 0.5], [1, 1], [0, 1]]]
    lines = list(table({"x": found, "y": found[1:]}, ["a", "b"], pairs=[("x", "y"), ("x", "not run")]))
    assert "| `x` | no training | 0.000 [" in lines[2]
    (mine,) = [line for line in lines if line.startswith("| `x` | 2 | ")]
    assert [cell.split(" ")[0] for cell in mine.split(" | ")[2:]] == ["0.625", "0.812", "0.750", "-0.750"]
    assert lines[-1].startswith("| `x` minus `y` | 1 | +0.250 [")
    assert " | -0.500 [" in lines[-1]  # forgetting: 0.5, and 1 of the other
