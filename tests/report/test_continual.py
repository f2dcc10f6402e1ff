"""A sequence of data sets: its steps, and the matrix that they make, computed by hand."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cft.cli.report import run as report
from cft.data.word_problems import problems
from cft.pipelines.entries import shared_with
from cft.pipelines.sequence import Continual
from cft.report.continual import Matrix, heat_map, matrix_frame, measures_frame, sequences
from cft.report.figures import png_of
from cft.report.read import ReportError
from cft.runs.run import SEQUENCE
from tests.results import arm, write_run

DATA = ("a", "b", "c")
# A[i, j] over ten problems each, i = 0 before all of them.
RIGHT = ((2, 3, 1), (9, 2, 1), (6, 8, 2), (7, 5, 10))


def tree(**more: Any) -> dict[str, Any]:
    steps = {"annotate": {"limit": 9}, "train": {"mask": "all", "optimizer$1groups": "slow_body"}, "first": {"seed": 3}}
    sets = {name: {"data": "arithmetic", "data.name": name, "+data.operations": ["+"]} for name in DATA}
    return {"sequence": sets, "steps": steps, **more}


def written(folder: Path, *, without: str = "") -> Path:
    made = Continual.of(tree())
    assert made is not None
    made.write(folder)
    tests = json.loads((folder / SEQUENCE).read_text())["tests"]
    for row, rights in zip(tests, RIGHT, strict=True):
        for j, (step, right) in enumerate(zip(row, rights, strict=True)):
            if step != without:
                correct = [1] * right + [0] * (10 - right)
                order = np.random.default_rng(len(step)).permutation(10).tolist()  # paired by id, not by place
                more: dict[str, Any] = {"ids": [f"p{i}" for i in order], "benchmark": DATA[j], "stage": "evaluate"}
                write_run(folder, step, arm("all"), seed=0, correct=[correct[i] for i in order], **more)
    return folder


class Planned:
    """In place of a planner: the nodes that it is given, and what is shared with them beside the rest."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self.more: dict[str, Any] = {}

    def add(self, name: str, node: dict[str, Any], *, check: bool = True, more: Any = ()) -> None:
        self.nodes[name], self.more[name] = node, more


def test_each_training_starts_from_the_one_before_it_and_is_tested_on_all() -> None:
    planned: Any = Planned()
    made = Continual.of(tree())
    assert made is not None
    assert list(made.errors()) == []
    made.add_to(planned)
    assert list(planned.nodes) == [
        *("annotate-a", "annotate-b", "annotate-c", "base-on-a", "base-on-b", "base-on-c"),
        *("train-a", "a-on-a", "a-on-b", "a-on-c", "train-b", "b-on-a", "b-on-b", "b-on-c"),
        *("train-c", "c-on-a", "c-on-b", "c-on-c", "report"),
    ]
    method = {"stage": "train", "mask": "all", "optimizer/groups": "slow_body", "evaluation.problems": 0}
    assert planned.nodes["train-a"] == {
        **method, "data.annotation": "<step:annotate-a.config.annotation>", "seed": 3,
    }  # fmt: skip
    assert planned.nodes["train-b"] == {
        **method, "data.annotation": "<step:annotate-b.config.annotation>",
        "model": "hub", "model.name": "a", "model.path": "<step:train-a.dir>/export",
    }  # fmt: skip
    assert planned.nodes["b-on-c"] == {"stage": "evaluate", "checkpoint": "<step:train-b.dir>"}
    as_annotated = [entry.word for entry in shared_with("annotate", planned.more["annotate-b"]).values()]
    assert as_annotated == ["annotation=b", "data=arithmetic", "data.name=b", "+data.operations=[+]"]
    as_tested = [entry.word for entry in shared_with("evaluate", planned.more["a-on-c"]).values()]
    assert as_tested == ["benchmark=arithmetic", "benchmark.name=c", "+benchmark.operations=[+]"]
    assert Continual.of({"steps": {"train": {}}}) is None


def test_what_is_wrong_with_a_sequence_is_said() -> None:
    wrong = Continual.of({"sequence": {"a": {}, "b c": {}, "d": 3}, "steps": {"tran": {}}})
    assert wrong is not None
    assert [str(error) for error in wrong.errors()] == [
        "steps.tran: no such step of a sequence of data sets, did you mean train?",
        "sequence.b c: expected a name of letters, digits and _",
        "sequence.d: expected overrides of data, such as {data: gsm8k}, found 3",
    ]
    alone = Continual.of({"sequence": {"a": {}}})
    assert alone is not None
    assert [error.key for error in alone.errors()] == ["sequence"]


def test_the_measures_are_those_of_the_matrix(tmp_path: Path) -> None:
    (matrix,) = sequences([written(tmp_path / "one")])
    measures = {name: interval.value for name, interval in matrix.measures().items()}
    assert measures == pytest.approx(
        {
            "mean accuracy": (0.7 + 0.5 + 1.0) / 3,
            "mean accuracy along the way": (0.9 + (0.6 + 0.8) / 2 + (0.7 + 0.5 + 1.0) / 3) / 3,
            "forgetting": ((0.9 - 0.7) + (0.8 - 0.5)) / 2,
            "backward transfer": ((0.7 - 0.9) + (0.5 - 0.8)) / 2,
        }
    )
    assert all(interval.low < interval.value < interval.high for interval in matrix.measures().values())
    forgotten = matrix.measures()["forgetting"]
    assert forgotten.low < 0.25 < forgotten.high
    frame = matrix_frame([matrix])
    found = frame.pivot(index="after", columns="test", values="accuracy").to_numpy()
    np.testing.assert_allclose(found, np.array(RIGHT) / 10)
    assert png_of(heat_map(matrix))[:4] == b"\x89PNG"
    assert measures_frame([matrix])["forgetting"].tolist() == pytest.approx([0.25])


def test_accuracy_along_the_way_varies_as_the_sum_of_its_cells_does() -> None:
    """Of two test sets of other problems: A[1, 1] / 2 + A[2, 1] / 4, of the same problems, and A[2, 2] / 4."""
    rng = np.random.default_rng(0)
    a11, a21, a22 = (rng.integers(0, 2, 400).astype(float) for _ in range(3))
    matrix = Matrix("x", ("a", "b"), ((a11, a22), (a11, a22), (a21, a22)))
    found = matrix.measures()["mean accuracy along the way"]
    assert found.value == pytest.approx(a11.mean() / 2 + (a21.mean() + a22.mean()) / 4, abs=1e-12)
    deviation = np.sqrt((a11 / 2 + a21 / 4).var() / 400 + (a22 / 4).var() / 400)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(deviation, rel=0.1)


def test_rows_are_paired_by_problem(tmp_path: Path) -> None:
    """The same right problems before and after: nothing was forgotten, and nobody doubts it."""
    folder = tmp_path / "same"
    Continual.of(tree()).write(folder)  # type: ignore[union-attr]
    for row in json.loads((folder / SEQUENCE).read_text())["tests"]:
        for at, step in enumerate(row):
            order = np.random.default_rng(at + len(step)).permutation(10).tolist()
            ids = [f"p{i}" for i in order]
            write_run(folder, step, arm("all"), seed=0, correct=[i % 2 for i in order], ids=ids)
    (matrix,) = sequences([tmp_path])
    for name in ("forgetting", "backward transfer"):
        assert (matrix.measures()[name].low, matrix.measures()[name].high) == (0.0, 0.0)


def test_a_report_of_the_pipelines_folder_shows_it_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "one")
    written(tmp_path / "two", without="c-on-a")
    out = tmp_path / "report"
    assert report([str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(out), "--no-annotation"]) == 0
    said = capsys.readouterr().out
    assert "one (a -> b -> c): mean accuracy 0.733" in said
    assert "two: the sequence is not finished" in said
    page = (out / "report.html").read_text()
    assert "Continual training" in page
    assert "The sequence is not finished" in page
    assert len(pd.read_csv(out / "continual.csv")) == 12 + 11
    assert pd.read_csv(out / "continual_measures.csv")["sequence"].tolist() == ["one"]
    assert {path.name for path in out.glob("continual*.png")} == {"continual-1.png", "continual-2.png"}


def test_tests_on_other_problems_are_no_column(tmp_path: Path) -> None:
    folder = written(tmp_path / "one", without="b-on-a")
    write_run(folder, "b-on-a", arm("all"), seed=0, correct=[1, 0])
    with pytest.raises(ReportError, match=r"tests on a are of different problems; give all of them one limit"):
        sequences([folder])
    (folder / SEQUENCE).write_text("{}")
    with pytest.raises(ReportError, match=r"sequence\.json: damaged"):
        sequences([folder])


@pytest.mark.parametrize("operations", [["-"], ["*", "+"]])
def test_problems_of_some_operations_have_no_others(operations: Any) -> None:
    found = islice(problems(seed=0, split="test", operations=operations), 40)
    assert {operator for chain, _ in found for operator, _ in chain.steps} == set(operations)
