"""Runs as they lie in folders: damaged, missing or unfinished ones, and the log of the training."""

from __future__ import annotations

from pathlib import Path

import pytest

from cft.cli.report import run as main
from cft.report.compare import compare
from cft.report.read import DIVERGED, ReportError, collect, unfinished
from cft.runs.results import ResultsError
from cft.training.callbacks.guards import REPORT
from tests.results import arm, compared, write_run


def test_a_damaged_file_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"schema": 2}')  # what else may be wrong: tests/runs/test_results.py
    with pytest.raises(ResultsError, match="expected results of schema 1, found 2") as error:
        collect([tmp_path])
    assert str(tmp_path) in str(error.value)
    assert main([str(tmp_path)]) == 1


def test_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"no results\.json below"):
        collect([tmp_path])
    with pytest.raises(ReportError, match="no such folder"):
        collect([tmp_path / "nowhere"])


def test_runs_without_an_evaluation_are_left_out_and_counted(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0])
    write_run(tmp_path, "b", arm("critical"), seed=0, correct=[1], metrics={}, per_problem={"id": [], "correct": []})
    comparison = compared(tmp_path)
    assert [a.label for a in comparison.arms] == ["SFT"]
    assert any("1 run without an evaluation is left out" in note for note in comparison.notes)


def test_runs_of_which_none_was_evaluated_are_refused_with_the_way_out(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0], metrics={})
    with pytest.raises(ReportError, match=r"experiments\.learning_rates"):
        compare(collect([tmp_path]))


CONFIG = "seed: 1\noptimizer:\n  lr: 1000000.0\n"


def without_results(root: Path, name: str, *, config: str = CONFIG, diverged: bool = False) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    if diverged:
        (folder / DIVERGED).write_text("{}")
    return folder


def test_runs_that_left_no_results_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert DIVERGED == REPORT
    root = tmp_path / "multi"
    finished = write_run(root, "0", arm("all"), seed=0, correct=[1, 0])
    (finished / "config.yaml").write_text(CONFIG)
    without_results(root, "1", diverged=True)
    without_results(root, "2")
    without_results(root, "3/.hydra")  # ended before its training began
    (root / "multirun.yaml").write_text("")
    without_results(root, "0/wandb/run/files", config="_wandb: {}\nseed:\n  value: 1\noptimizer: {}\n")
    without_results(root, "annotation", config="seed: 1\nengine: fast\n")
    assert [path.name for path in unfinished([root])] == ["1", "2", "3"]
    (comparison,) = compare(collect([root]))
    assert [note for note in comparison.notes if note.startswith("Not in the means")] == [
        "Not in the means: 1 run (multi/1), diverged (loss or gradient not finite).",
        "Not in the means: 2 runs (multi/2, multi/3), no results.json: cut off, failed, or still running.",
    ]
    out = tmp_path / "out"
    assert main([str(root), "--no-annotation", "--out", str(out)]) == 0
    assert "multi/1" in capsys.readouterr().out
    assert "multi/1" in (out / "report.html").read_text()
    with pytest.raises(ReportError, match=r"no results\.json below.*multi/1\), diverged"):
        collect([root / "1"])


def test_a_refused_command_alone_is_no_run(tmp_path: Path) -> None:
    without_results(tmp_path, "x/.hydra")
    assert unfinished([tmp_path]) == []
