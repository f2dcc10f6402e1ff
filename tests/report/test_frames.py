"""What the CSV files hold: curves, pass@k, what was spent, settings, disarmed cells."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.report import frames
from cft.report.compare import compare
from cft.report.read import collect
from cft.report.tables import cell, write_csv
from tests.results import arm, compared, read_csv, write_run

METRICS = """epoch,step,train/loss,val/loss,val/loss_critical,val/entropy_critical,val/entropy_other
,0,0.9,,,,
0,4,0.5,,,,
0,4,,0.7,0.6,0.3,0.2
1,9,,0.8,0.5,0.25,nan
1,9,0.2,,,,
1,10,broken,
"""


def test_curves_and_the_best_epoch_are_read_from_the_log(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = write_run(tmp_path, f"r{seed}", arm("critical"), seed=seed, correct=[1, 0])
        (folder / "metrics.csv").write_text(METRICS.replace("0.9", f"{0.9 - 0.2 * seed}"))
    comparison = compared(tmp_path)
    metrics = comparison.arms[0].metrics
    assert metrics["val/entropy_critical"].interval.value == pytest.approx(0.25)  # best_epoch 1
    assert metrics["val/loss_critical"].interval.value == pytest.approx(0.5)
    assert "val/entropy_other" not in metrics  # not a number
    assert metrics["val/entropy_critical"].scope == "seeds"
    found = frames.learning_curves([comparison, comparison])  # as on two benchmarks: each run once
    loss = found[found["metric"] == "train/loss"]
    points = [run[["step", "value"]].to_numpy().tolist() for _, run in loss.groupby("run")]
    assert points == [[[0, 0.9], [4, 0.5], [9, 0.2]], [[0, 0.7], [4, 0.5], [9, 0.2]]]
    assert frames.mean_curve(loss).to_dict() == {0: pytest.approx(0.8), 4: 0.5, 9: pytest.approx(0.2)}


def test_pass_at_k_of_every_k_from_the_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = rng.random((2, 5, 6)) < 0.4
    for seed in (0, 1):
        columns = {"id": list("abcde"), "correct": [1, 0, 1, 0, 1], "num_right": samples[seed].sum(1).tolist()}
        facts = {"per_problem": columns, "evaluation": {"num_samples": 6}}
        write_run(tmp_path, str(seed), arm("all"), seed=seed, correct=[1, 0, 1, 0, 1], **facts)
    comparison = compared(tmp_path)
    curve = frames.pass_curves(comparison)
    assert curve["k"].tolist() == [1, 2, 3, 4, 5, 6]
    for point in curve.itertuples():
        subsets = list(combinations(range(6), point.k))
        expected = np.mean([samples[:, :, list(subset)].any(-1) for subset in subsets])
        assert point.pass_at_k == pytest.approx(expected)
        assert 0 <= point.low <= point.pass_at_k <= point.high <= 1


def test_greedy_runs_have_no_pass_at_k(tmp_path: Path) -> None:
    write_run(tmp_path, "greedy", arm("all"), seed=0, correct=[1, 0], evaluation={"num_samples": 0})
    assert frames.pass_curves(compared(tmp_path)).empty


def test_compute_stands_beside_training_and_an_rl_step() -> None:
    manifest = AnnotationStore(SHIPPED / "tiny_arith").manifest()
    spent = frames.compute_spent([], manifest=manifest)
    assert spent["tokens"].tolist() == [159041, 2390280]
    assert frames.rl_steps(manifest) == pytest.approx((159041 + 2390280) / (8 * 159041))
    assert frames.compute_spent([], manifest={}).empty
    assert frames.rl_steps({}) is None


def test_training_tokens_are_response_tokens_times_epochs(tmp_path: Path) -> None:
    for seed, tokens in ((0, 100), (1, 120)):
        data = {"response_tokens": tokens, "fingerprint": "f"}
        write_run(tmp_path, str(seed), arm("all"), seed=seed, correct=[1, 0], data=data)
    comparison = compared(tmp_path)
    spent = frames.compute_spent([comparison, comparison], manifest={})
    assert spent.to_numpy().tolist() == [["training: SFT", 3.0, 220.0, 2]]


def test_a_training_that_was_measured_twice_is_spent_once(tmp_path: Path) -> None:
    for benchmark, seeds in (("a", (0, 1)), ("b", (1, 2))):
        for seed in seeds:
            more = {"train_seconds": float(seed), "benchmark": benchmark}
            write_run(tmp_path, f"{benchmark}{seed}", arm("all"), seed=seed, correct=[1, 0], **more)
    spent = frames.compute_spent(compare(collect([tmp_path])), manifest={})
    assert spent[["seconds", "mean_of_runs"]].to_numpy().tolist() == [[1.0, 3]]


@pytest.mark.parametrize(
    "value, expected",
    [
        ("=cmd()", "'=cmd()"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+1+cmd()", "'+1+cmd()"),
        ("-2+3", "'-2+3"),
        (" \t=1", "'     =1"),
        ("-0.5", "-0.5"),
        (-0.5, -0.5),
        (3, 3),
        (None, ""),
        ("plain", "plain"),
        ("a\nb\x1b[31m", "a⏎b␛[31m"),
    ],
)
def test_cells_cannot_be_formulas_and_numbers_stay_numbers(value: Any, expected: Any) -> None:
    assert cell(value) == expected


def test_arms_csv_holds_the_difference_as_a_negative_number(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("all", note="=HYPERLINK()"), seed=0, correct=[1, 1, 1, 0])
    write_run(tmp_path, "b", arm("critical", note="=HYPERLINK()"), seed=0, correct=[0, 0, 1, 0])
    write_csv(tmp_path / "arms.csv", frames.arms_frame([compared(tmp_path)]))
    sft, cft = read_csv(tmp_path / "arms.csv")
    assert float(cft["eval/accuracy/difference"]) == -0.5
    assert cft["difference_to"] == "SFT"
    assert sft["eval/accuracy/difference"] == ""
    assert cft["note"] == "'=HYPERLINK()"
