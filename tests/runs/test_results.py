"""results.json: what is written is what is read, and what is no such file is refused with its name."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from cft.runs.results import RESULTS, TRAINING_FACTS, ResultsError, RunResults


def results(**changes: Any) -> RunResults:
    found: dict[str, Any] = {
        "stage": "train",
        "run": "a",
        "arm": {"mask": "critical"},
        "seed": 3,
        "benchmark": "arithmetic",
        "split": "test",
        "metrics": {"eval/accuracy": {"value": 0.5, "low": 0.25, "high": 0.75}},
        "per_problem": {"id": ["p", "q"], "correct": [1, 0]},
        "not_run": ["r"],
        "budget": {"epochs": 0.75, "steps": 3, "rows_per_step": 16},
        "best_epoch": 0,
    }
    return RunResults(**found | changes)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    results().write(tmp_path)
    assert RunResults.read(tmp_path / RESULTS) == RunResults.find(tmp_path) == results()
    on_disk = json.loads((tmp_path / RESULTS).read_text(encoding="utf-8"))
    assert on_disk["schema"] == 1
    assert on_disk["best_epoch"] == 0  # 0 is a value, None is none
    assert "base" not in on_disk
    assert on_disk.keys() <= {entry.name for entry in dataclasses.fields(RunResults)}
    assert results().training_facts() == {"budget": on_disk["budget"], "best_epoch": 0}
    assert {*TRAINING_FACTS} <= {entry.name for entry in dataclasses.fields(RunResults)}


def test_a_value_that_is_not_a_number_is_null_on_disk_and_no_accuracy(tmp_path: Path) -> None:
    nan = {"value": math.nan, "low": math.nan, "high": math.nan}
    results(metrics={"eval/accuracy": nan}).write(tmp_path)
    assert json.loads((tmp_path / RESULTS).read_text())["metrics"]["eval/accuracy"]["value"] is None
    assert math.isnan(RunResults.read(tmp_path / RESULTS).accuracy)
    assert math.isnan(results(metrics={}).accuracy)
    assert results().accuracy == 0.5


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "expected results of schema 1, found list"),
        ("{}", "expected results of schema 1, found None"),
        ('{"schema": 2}', "expected results of schema 1, found 2"),
        ('{"schema": 1, "stage": "train"}', "missing run, arm, seed"),
    ],
)
def test_a_damaged_file_is_an_error_with_its_name_and_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / RESULTS).write_text(text)
    with pytest.raises(ResultsError, match=rf"results\.json: damaged: {message}.*Restore it from a copy"):
        RunResults.find(tmp_path)


@pytest.mark.parametrize("columns", [{"id": ["p"], "correct": [1, 0]}, {"id": ["p", "p"], "correct": [1, 0]}])
def test_columns_of_other_lengths_or_the_same_ids_are_damage(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    results(per_problem=columns).write(tmp_path)
    with pytest.raises(ResultsError, match="columns of one length and different ids"):
        RunResults.find(tmp_path)


def test_where_there_are_none_they_are_found_to_be_none_and_cannot_be_read(tmp_path: Path) -> None:
    assert RunResults.find(tmp_path) is None
    with pytest.raises(ResultsError, match="no such file"):
        RunResults.read(tmp_path / RESULTS)
