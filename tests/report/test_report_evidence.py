"""What a comparison rests on: marks, corrected p-values, chosen learning rates, curves, pass@k, compute, token profile."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.cli.report import run as main
from cft.evaluation.paired_tests import holm
from cft.masks.base import Critical
from cft.report import compute, curves, pass_curve, profile
from cft.report.arms import ReportError
from cft.report.choice import choose
from cft.report.compare import collect, compare
from cft.report.settings import differing
from cft.report.table import MARK, RATE, VALIDATION, P, cells
from cft.types import Outcome
from tests.fakes import row
from tests.report.test_report import TARGETS, arm, draws, write_run


def budget(steps: int = 10, **more: Any) -> dict[str, Any]:
    return {"budget": {"epochs": 2, "steps": steps, "rows_per_step": 16}, **more}


# ---- what differs beside the method


@pytest.mark.parametrize(
    "ours, theirs, mark",
    [
        ({}, {}, ""),
        ({"budget": {"steps": 10}}, {"budget": {"steps": 20}}, "budget: steps 10 and 20"),
        ({"budget": {"rows_per_step": 8}}, {"budget": {"rows_per_step": 16}}, "budget: rows per step 8 and 16"),
        ({"data": {"fingerprint": "a"}}, {"data": {"fingerprint": "b"}}, "data: fingerprint of the annotation a and b"),
        (
            {"data": {"rows_sha256": "a" * 64}},
            {"data": {"rows_sha256": "b" * 64}},
            "training rows aaaaaaaaaaaa and bbb",
        ),
        ({"normalizer": "response"}, {}, "normalizer: response and critical"),
        ({"budget": {"steps": 10, "epochs": 1}}, {"budget": {"epochs": 1}}, "no record of the steps of SFT"),
        ({"budget": {"steps": 10}}, {"budget": {}}, "no record of the budget of SFT"),
        ({"budget": None}, {"budget": None}, "no record of the budget of CFT and SFT"),
        ({"data": None}, {}, "no record of the data of CFT"),
        ({"data": {"fingerprint": "f"}}, {}, "no record of the training rows of CFT"),
    ],
)
def test_arms_that_differ_in_more_than_the_method_are_marked_or_refused(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], mark: str
) -> None:
    for name, mask, facts in (("cft", "critical", dict(ours)), ("sft", "all", dict(theirs))):
        key = arm(mask, **{"loss.normalizer": facts.pop("normalizer", "critical")})
        write_run(tmp_path, name, key, seed=0, correct=[1, 0, 1], **facts)
    runs = collect([tmp_path])
    (comparison,) = compare(runs)
    cft = comparison.arms[1]
    assert cft.label == "CFT"
    assert bool(cft.marks) is bool(mark)
    titles, rows = cells(comparison)
    assert rows[1][titles.index("minus SFT")].endswith(MARK) is bool(mark)
    assert any(note.startswith("† CFT and SFT ") and mark in note for note in comparison.notes) is bool(mark)
    if mark:
        with pytest.raises(ReportError, match="without --strict"):
            compare(runs, strict=True)
        assert main([str(tmp_path), "--strict", "--out", str(tmp_path / "out")]) == 1
    else:
        assert compare(runs, strict=True)[0].arms[1].difference is not None


def test_the_untrained_model_has_no_budget_to_differ_in(tmp_path: Path) -> None:
    write_run(tmp_path, "base", {"model": "tiny"}, seed=0, correct=[0, 0, 1], stage="evaluate")
    write_run(tmp_path, "sft", arm("all"), seed=0, correct=[1, 0, 1], **budget())
    (comparison,) = compare(collect([tmp_path]), strict=True)
    assert [a.marks for a in comparison.arms] == [(), ()]
    assert comparison.arms[0].difference is not None


def test_p_values_are_corrected_over_every_benchmark_of_the_report(tmp_path: Path) -> None:
    for place, masks in (("a", ("all", "critical", "numeric")), ("b", ("all", "critical"))):
        for i, mask in enumerate(masks):
            for seed in (0, 1, 2):
                correct = draws(10 * i + seed, 0.4 + 0.15 * i, size=60)
                write_run(tmp_path, f"{place}{mask}{seed}", arm(mask), seed=seed, correct=correct, benchmark=place)
    comparisons = compare(collect([tmp_path]))
    contrasts = [a.contrasts["eval/accuracy"] for c in comparisons for a in c.arms if a.contrasts]
    assert len(contrasts) == 3
    assert [c.holm for c in contrasts] == pytest.approx(holm([c.p for c in contrasts]))
    titles, rows = cells(comparisons[0])
    assert rows[0][titles.index(P)] == "–"


def test_one_seed_each_is_tested_by_mcnemar(tmp_path: Path) -> None:
    a, b = draws(1, 0.8), draws(2, 0.4)
    write_run(tmp_path, "a", arm("critical"), seed=0, correct=a)
    write_run(tmp_path, "b", arm("all"), seed=0, correct=b)
    (comparison,) = compare(collect([tmp_path]))
    contrast = comparison.arms[1].contrasts["eval/accuracy"]
    only_a = sum(x > y for x, y in zip(a, b, strict=True))
    only_b = sum(x < y for x, y in zip(a, b, strict=True))
    assert contrast.test == "exact McNemar"
    assert contrast.p == pytest.approx(scipy.stats.binomtest(only_a, only_a + only_b).pvalue)


# ---- choosing the learning rate


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
    titles, rows = cells(comparison)
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


# ---- curves and values of the best epoch

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
    (comparison,) = compare(collect([tmp_path]))
    metrics = comparison.arms[0].metrics
    assert metrics["val/entropy_critical"].interval.value == pytest.approx(0.25)  # best_epoch 1
    assert metrics["val/loss_critical"].interval.value == pytest.approx(0.5)
    assert "val/entropy_other" not in metrics  # not a number
    assert metrics["val/entropy_critical"].scope == "seeds"
    found = curves.curves_of([comparison, comparison])  # as on two benchmarks: each run once
    loss = curves.by_arm(found, metric="train/loss")["CFT"]
    assert [curve.points for curve in loss] == [[(0, 0.9), (4, 0.5), (9, 0.2)], [(0, 0.7), (4, 0.5), (9, 0.2)]]
    assert curves.mean_curve(loss) == [(0, pytest.approx(0.8)), (4, 0.5), (9, pytest.approx(0.2))]


# ---- pass@k


def test_pass_at_k_of_every_k_from_the_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = rng.random((2, 5, 6)) < 0.4
    for seed in (0, 1):
        columns = {"id": list("abcde"), "correct": [1, 0, 1, 0, 1], "num_right": samples[seed].sum(1).tolist()}
        facts = {"per_problem": columns, "evaluation": {"num_samples": 6}}
        write_run(tmp_path, str(seed), arm("all"), seed=seed, correct=[1, 0, 1, 0, 1], **facts)
    (comparison,) = compare(collect([tmp_path]))
    (curve,) = pass_curve.pass_curves(comparison)
    assert list(curve.points) == [1, 2, 3, 4, 5, 6]
    for k, interval in curve.points.items():
        subsets = list(combinations(range(6), k))
        expected = np.mean([samples[:, :, list(subset)].any(-1) for subset in subsets])
        assert interval.value == pytest.approx(expected)
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_runs_from_before_the_counts_give_them_by_pass_at_1(tmp_path: Path) -> None:
    columns = {"id": ["a", "b"], "correct": [1, 0], "pass_at_1": [0.75, 0.25]}
    write_run(tmp_path, "old", arm("all"), seed=0, correct=[1, 0], per_problem=columns, evaluation={"num_samples": 4})
    write_run(tmp_path / "none", "greedy", arm("all"), seed=0, correct=[1, 0], evaluation={"num_samples": 0})
    (old,) = pass_curve.pass_curves(compare(collect([tmp_path / "old"]))[0])
    assert old.points[2].value == pytest.approx((1.0 - 0 + 1 - 3 / 6) / 2)
    assert pass_curve.pass_curves(compare(collect([tmp_path / "none"]))[0]) == []


# ---- compute and configurations


def test_compute_stands_beside_training_and_an_rl_step() -> None:
    manifest = AnnotationStore(SHIPPED / "tiny_arith").manifest()
    solving, counterfactual = compute.annotation_spent(manifest)
    assert (solving.tokens, counterfactual.tokens) == (159041, 2390280)
    assert compute.rl_steps(manifest) == pytest.approx((159041 + 2390280) / (8 * 159041))
    assert compute.annotation_spent({}) == []
    assert compute.rl_steps({}) is None


def test_training_tokens_are_response_tokens_times_epochs(tmp_path: Path) -> None:
    for seed, tokens in ((0, 100), (1, 120)):
        facts = budget(data={"response_tokens": tokens, "fingerprint": "f"})
        write_run(tmp_path, str(seed), arm("all"), seed=seed, correct=[1, 0], **facts)
    comparisons = compare(collect([tmp_path]))
    (spent,) = compute.training_spent([*comparisons, *comparisons])
    assert spent == compute.Spent("training: SFT", 3.0, 220.0, 2)


def test_only_settings_that_differ_between_arms_are_listed() -> None:
    arms = [[{"lr": 0.1, "mask": "all", "x": 1}], [{"lr": 0.1, "mask": "critical", "x": 1}, {"lr": 0.1, "mask": "any"}]]
    assert differing(arms) == {"mask": ["all", "critical | any"]}


# ---- the profile of critical tokens


def test_the_profile_counts_each_token_once_in_each_view() -> None:
    one = row(
        [1, 2, 3, 4],
        outcomes=[[0, 0], [1, 0], [0, 0], [1, -1]],
        response="2 + a",
        char_span=[[0, 1], [1, 3], [3, 5], [5, 5]],
    )
    one = replace(
        one,
        entropy=np.array([0.0, 0.2, 0.02, 5.0], np.float32),
        logprob=np.log(np.array([1.0, 0.5, 0.95, 0.1], np.float32)),
    )
    found = profile.profile([one, one], mask=Critical())
    assert (found.responses, found.tokens, found.critical) == (2, 8, 4)
    for by in ("kind", "position", "entropy", "probability"):
        assert sum(b.tokens for b in found.of(by)) == 8
        assert sum(b.critical for b in found.of(by)) == 4
    assert {b.label: (b.tokens, b.critical) for b in found.of("kind")} == {
        "digit": (2, 2),
        "operator": (2, 0),
        "word": (2, 2),
        "end": (2, 0),
    }
    assert {b.label: b.critical for b in found.of("position")} == {
        "0%-10%": 2,
        "20%-30%": 0,
        "50%-60%": 2,
        "70%-80%": 0,
    }
    assert {b.label: b.critical for b in found.of("entropy")} == {
        "0-0.001": 2,
        "0.01-0.03": 2,
        "0.1-0.3": 0,
        "over 1.5": 0,
    }
    assert {b.label: b.critical for b in found.of("probability")} == {
        "0-0.2": 0,
        "0.4-0.6": 0,
        "0.9-0.99": 2,
        "0.999-1": 2,
    }


def test_the_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    values, flags = rng.integers(0, 6, 200).astype(float), rng.random(200) < 0.3
    assert profile.spearman(values, flags) == pytest.approx(scipy.stats.spearmanr(values, flags).statistic)
    assert np.isnan(profile.spearman(values, np.zeros(200, bool)))


def test_a_report_on_an_annotation_alone(tmp_path: Path) -> None:
    assert main(["--annotation", "tiny_arith", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"critical_tokens.{kind}" for kind in ("png", "pdf", "csv")),
        "report.html",
    }
    with (tmp_path / "critical_tokens.csv").open(newline="") as handle:
        kinds = {r["bin"]: r for r in csv.DictReader(handle) if r["by"] == "kind"}
    assert sum(int(r["tokens"]) for r in kinds.values()) == 76_223
    assert f"{float(kinds['operator']['share']):.0%}" == "81%"
    assert kinds["line break"]["share"] == ""  # none occurs


def test_nothing_to_report_on_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "--annotation NAME" in capsys.readouterr().err


def test_outcome_codes_have_words_for_the_page() -> None:
    from cft.report.explorer import OUTCOMES

    assert set(OUTCOMES) == set(Outcome)
