"""The learning rate of an arm is chosen by validation scores alone, and by those of every seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cft.cli.report import run as main
from cft.report.choice import choose
from cft.report.compare import compare
from cft.report.read import DIVERGED, ReportError, collect
from cft.report.tables import RATE, VALIDATION
from experiments.learning_rates import main as print_rates
from tests.results import TARGETS, arm, grid, write_run


def searched(
    root: Path, mask: str, rate: float, *, seed: int, score: float | None, tested: bool, metric: str = "val/accuracy"
) -> None:
    more: dict[str, Any] = {"best_validation": {"metric": metric, "value": score}}
    if not tested:
        more |= {"metrics": {}, "per_problem": {"id": [], "correct": []}}
    key = arm(mask, **{"optimizer.lr": rate})
    settings = {"optimizer.lr": rate, "mask._target_": TARGETS[mask], "data.batch_size": 16}
    correct = [1, 0, int(rate > 0.005)]
    write_run(root, f"{mask}{rate}{seed}{tested}", key, seed=seed, correct=correct, settings=settings, **more)


@pytest.mark.usefixtures("undrawn")
def test_the_rate_is_the_best_on_validation_and_test_results_play_no_part(tmp_path: Path) -> None:
    for mask, good in (("all", 0.001), ("critical", 0.01)):
        for rate in (0.001, 0.01):
            for seed in (100, 101):
                searched(
                    tmp_path,
                    mask,
                    rate,
                    seed=seed,
                    score=0.6 if rate == good else 0.5 + 0.001 * seed / 100,
                    tested=False,
                )
            searched(tmp_path, mask, rate, seed=0, score=0.1 if rate == good else 0.9, tested=True)  # must not decide
    write_run(tmp_path, "base", {"model": "tiny"}, seed=0, correct=[0, 0, 0], stage="evaluate")
    kept, choices = choose(collect([tmp_path]), key="optimizer.lr")
    assert {c.arm["mask"]: c.chosen for c in choices} == {"all": "0.001", "critical": "0.01"}
    assert {(run.arm.get("mask"), run.arm.get("optimizer.lr")) for run in kept} == {
        (None, None),
        ("all", 0.001),
        ("critical", 0.01),
    }
    (comparison,) = compare(kept)
    titles, rows = grid(comparison)
    assert [row[titles.index(RATE)] for row in rows] == ["–", "0.001", "0.01"]
    assert [row[titles.index(VALIDATION)] for row in rows] == ["–", "0.100", "0.100"]
    assert main([str(tmp_path), "--choose", "optimizer.lr", "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Choice of optimizer.lr" in page
    assert "test results play no part" in page


def test_tested_runs_decide_where_there_was_no_search_and_a_loss_is_better_low(tmp_path: Path) -> None:
    for rate, score in ((0.001, 0.7), (0.01, 0.5), (0.1, None)):
        searched(tmp_path, "all", rate, seed=0, score=score, tested=True, metric="val/loss")
    kept, (choice,) = choose(collect([tmp_path]), key="optimizer.lr")
    assert choice.chosen == "0.01"
    assert list(choice.scores) == ["0.001", "0.01", "0.1"]
    assert choice.scores["0.1"] == [float("inf")]
    assert [run.arm["optimizer.lr"] for run in kept] == [0.01]


def test_a_chosen_rate_that_was_not_tested_is_refused_with_what_to_run(tmp_path: Path) -> None:
    searched(tmp_path, "all", 0.001, seed=100, score=0.9, tested=False)
    searched(tmp_path, "all", 0.01, seed=100, score=0.5, tested=False)
    searched(tmp_path, "all", 0.01, seed=0, score=0.5, tested=True)
    with pytest.raises(ReportError, match=r"mask=all.*train and test it with optimizer.lr=0.001"):
        choose(collect([tmp_path]), key="optimizer.lr")
    with pytest.raises(ReportError, match="no run has this entry"):
        choose(collect([tmp_path]), key="optimizer.beta")


def test_a_rate_of_which_a_seed_is_missing_is_not_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rate, seed, score in ((0.0001, 100, 0.45), (0.0001, 101, 0.47), (0.01, 101, 0.48)):
        searched(tmp_path, "critical", rate, seed=seed, score=score, tested=False)
    (tmp_path / "diverged").mkdir()
    (tmp_path / "diverged" / "config.yaml").write_text("seed: 1\noptimizer:\n  lr: 1000000.0\n")
    (tmp_path / "diverged" / DIVERGED).write_text("{}")
    for rate in (0.0001, 0.01):
        searched(tmp_path, "critical", rate, seed=0, score=0.5, tested=True)
    kept, (choice,) = choose(collect([tmp_path]), key="optimizer.lr")
    assert choice.chosen == "0.0001"
    assert choice.scores == {"0.0001": [0.45, 0.47], "0.01": [float("-inf"), 0.48]}
    (comparison,) = compare(kept)
    assert any("optimizer.lr=0.01 has no run of seed 100" in note for note in comparison.notes)
    assert any("diverged), diverged" in note for note in comparison.notes)
    print_rates([tmp_path])
    assert "has no run of seed 100" in " ".join(capsys.readouterr().out.split())


def test_a_search_without_any_whole_value_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    searched(tmp_path, "all", 0.001, seed=100, score=0.5, tested=False)
    searched(tmp_path, "all", 0.01, seed=101, score=0.6, tested=False)
    with pytest.raises(ReportError, match=r"no value has a score for every seed.*0\.001 has no run of seed 101"):
        choose(collect([tmp_path]), key="optimizer.lr")
    print_rates([tmp_path])
    assert "best" not in capsys.readouterr().out


def test_an_evaluated_checkpoint_is_no_second_vote(tmp_path: Path) -> None:
    """Evaluations repeat the validation score of their training."""
    for rate, seed, score in ((0.001, 0, 0.9), (0.001, 1, 0.1), (0.01, 0, 0.6), (0.01, 1, 0.6)):
        searched(tmp_path, "all", rate, seed=seed, score=score, tested=True)
        if (rate, seed) == (0.001, 0):
            for benchmark in ("b", "c"):
                searched(tmp_path / benchmark, "all", rate, seed=seed, score=score, tested=True)
    _, (choice,) = choose(collect([tmp_path]), key="optimizer.lr")
    assert (choice.chosen, choice.scores["0.001"]) == ("0.01", [0.9, 0.1])


@pytest.mark.parametrize("metric, best", [("val/loss", "0.001"), ("val/accuracy", "0.01")])
def test_the_best_rate_has_the_lowest_loss_or_the_highest_accuracy(
    tmp_path: Path, metric: str, best: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for rate, score in ((0.001, 0.3), (0.01, 0.9), (0.1, None)):
        searched(tmp_path, "all", rate, seed=0, score=score, tested=False, metric=metric)
    print_rates([tmp_path])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.rstrip(" │").endswith("best")]
    assert best in line.split()


def test_each_arm_is_searched_by_itself_and_by_one_metric(tmp_path: Path) -> None:
    searched(tmp_path, "all", 0.001, seed=0, score=0.1, tested=False, metric="val/loss")
    searched(tmp_path, "critical", 0.01, seed=0, score=0.2, tested=False)
    _, choices = choose(collect([tmp_path]), key="optimizer.lr")
    assert [(c.arm["mask"], c.metric, c.scores) for c in choices] == [
        ("all", "val/loss", {"0.001": [0.1]}),
        ("critical", "val/accuracy", {"0.01": [0.2]}),
    ]
    searched(tmp_path, "all", 0.1, seed=0, score=0.2, tested=False)
    with pytest.raises(ReportError, match="validated by val/accuracy and val/loss"):
        choose(collect([tmp_path]), key="optimizer.lr")
