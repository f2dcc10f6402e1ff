"""The table of whole systems: what is run, and that its numbers are of the same problems."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cft.shipped import CONF_DIR
from experiments import robustness, systems
from experiments.systems import Row, described, measured, read_rows, table, words_of, write_rows
from experiments.systems import systems as names


def row(system: str, seed: int, right: str, *, benchmark: str = "arithmetic", step: str = "evaluate") -> Row:
    return Row(system=system, step=step, seed=seed, benchmark=benchmark, right=right, minutes=1.5)


def test_every_pipeline_is_in_the_guide_and_in_the_table() -> None:
    shipped = {path.stem for path in (CONF_DIR / "pipeline").glob("*.yaml")}
    assert shipped == set(described())
    assert {*systems.PIPELINE_OF, *shipped} == set(names([]))
    recorded = {row.system for row in read_rows()}
    assert shipped <= recorded  # each of them has run to its end


def test_a_run_trains_on_the_shipped_rows_under_the_common_budget() -> None:
    words = words_of("rho1", seed=1)
    for word in (
        "~steps.annotate",
        "~steps.base",
        "steps.score.annotation=tiny_arith",
        "steps.train.data.max_rows=320",
    ):
        assert word in words
    assert "steps.reference.trainer.max_epochs=2" in words
    # A yaml that extends another one has its steps.
    assert "steps.llmlingua2.data.annotation=tiny_arith" in words_of("sft_go_llmlingua2", seed=0)
    assert "steps.train.optimizer.lr=0.0001" in words_of("sft_go_llmlingua2", seed=0)
    assert words_of("sft", seed=0)[0] == "pipeline=cft"
    assert "~steps.base" not in words_of("sft", seed=0)  # the untrained model is measured there, once


def test_differences_are_paired_by_problem_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "RESULTS", tmp_path / "systems.csv")
    rows = [
        row("sft", 0, "1100"),
        row("sft", 1, "1000"),
        row("upft", 0, "1110"),
        row("upft", 1, "1010"),
        row("upft", 2, "0000"),
    ]
    write_rows(rows)
    assert read_rows() == sorted(rows, key=lambda one: (one.system, one.step, one.seed))
    accuracy, difference = measured(rows[2:], rows[:2])
    assert accuracy.value == pytest.approx(5 / 12)
    assert difference is not None
    assert difference.value == pytest.approx(0.25)  # of the two seeds that both have
    assert measured([row("upft", 0, "1111", benchmark="other")], rows[:2])[1] is None
    untrained = [row("upft", seed, "1111", step="base") for seed in (0, 1)]
    lines = list(table([*rows, row("shad", 0, "10", benchmark="other"), *untrained]))
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| `cft pipeline pipeline=cft steps.train.mask=all`",
        "| `cft pipeline pipeline=shad`",
        "| `cft pipeline pipeline=upft`",
        "| ",
    ]
    assert "arXiv 2412.14780 | annotate, train on shuffled pairs, score" in lines[3]
    assert "| `evaluate` | 3 | 0.417 [" in lines[4]
    assert "+0.250 [" in lines[4]
    assert "| `base` | 1 | 1.000 [" in lines[5]  # the same responses with every seed


def test_macro_f1_of_an_evaluation_counts_what_is_right_as_its_answer(tmp_path: Path) -> None:
    greedy = [("1", "1", 1), ("1", "01", 1), ("2", "1", 0), ("2", "", 0)]
    columns = {
        "problem_id": [str(i) for i in range(4)],
        "sample": [-1] * 4,
        "answer": [gold for gold, _, _ in greedy],
        "extracted": [said for _, said, _ in greedy],
        "outcome": pa.array([outcome for _, _, outcome in greedy], pa.int8()),
    }
    (tmp_path / "noise").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "noise" / "samples.parquet")
    (point,) = robustness.points([tmp_path])
    assert (point.name, point.problems, point.accuracy.value) == ("noise", 4, 0.5)
    assert point.macro_f1.value == pytest.approx(np.mean([2 * 2 / (2 + 3), 0.0]))
    with pytest.raises(robustness.NoEvaluations, match="expected folders of cft evaluate"):
        robustness.points([tmp_path / "nowhere"])
