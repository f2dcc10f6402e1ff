"""Differences to the reference, and what beside the method differs between arms: marked, or refused if strict."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from cft.cli.report import run as main
from cft.evaluation.paired_tests import holm
from cft.report import frames
from cft.report.arm_names import BASE
from cft.report.arms import MARK, Comparison
from cft.report.compare import compare
from cft.report.contrasts import marks_between
from cft.report.read import ReportError, collect
from cft.report.tables import P
from tests.results import arm, compared, draws, grid, write_run

SHORT, LONG = ({"epochs": 2, "steps": steps, "rows_per_step": 16} for steps in (10, 20))


def budget(steps: int = 10, **more: Any) -> dict[str, Any]:
    return {"budget": {"epochs": 2, "steps": steps, "rows_per_step": 16}, **more}


def evaluated(root: Path, name: str, *, of: Path, correct: list[int], **more: Any) -> Path:
    """evaluate.py of a run's checkpoint before it took the training's facts over."""
    trained = json.loads((of / "results.json").read_text())
    origin = {"run": trained["run"], "identity": trained["identity"], "seed": trained["seed"]}
    facts = {"stage": "evaluate", "lineage": {"inputs": [{"kind": "checkpoint", "came_from": origin}]}}
    facts |= {"identity": trained["identity"], "budget": None, "data": None, "best_epoch": None, "train_seconds": None}
    folder = write_run(root, name, trained["arm"], seed=trained["seed"], correct=correct, **facts, **more)
    results = json.loads((folder / "results.json").read_text())
    lacking = ("budget", "data", "best_epoch", "train_seconds", "eligible_fraction")
    (folder / "results.json").write_text(json.dumps({k: v for k, v in results.items() if k not in lacking}))
    return folder


def marked(comparison: Comparison) -> dict[str, tuple[str, ...]]:
    return {a.label: a.marks for a in comparison.arms if a.marks}


def refused(folder: Path) -> bool:
    return main([str(folder), "--strict", "--no-annotation", "--out", str(folder / "out")]) == 1


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
    titles, rows = grid(comparison)
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
    titles, rows = grid(comparisons[0])
    assert rows[0][titles.index(P)] == "–"


def test_one_seed_each_is_tested_by_mcnemar(tmp_path: Path) -> None:
    a, b = draws(1, 0.8), draws(2, 0.4)
    write_run(tmp_path, "a", arm("critical"), seed=0, correct=a)
    write_run(tmp_path, "b", arm("all"), seed=0, correct=b)
    comparison = compared(tmp_path)
    contrast = comparison.arms[1].contrasts["eval/accuracy"]
    only_a = sum(x > y for x, y in zip(a, b, strict=True))
    only_b = sum(x < y for x, y in zip(a, b, strict=True))
    assert contrast.test == "exact McNemar"
    assert contrast.p == pytest.approx(scipy.stats.binomtest(only_a, only_a + only_b).pvalue)


def test_an_evaluation_is_held_against_others_by_the_training_of_its_checkpoint(tmp_path: Path) -> None:
    write_run(tmp_path / "both", "sft", arm("all"), seed=0, correct=[1, 0], budget=SHORT)
    long = write_run(tmp_path / "cft", "cft", arm("critical"), seed=0, correct=[1, 1], budget=LONG, identity="abc")
    (long / "metrics.csv").write_text("epoch,step,val/loss,val/loss_critical\n1,20,0.5,0.25\n")
    evaluated(tmp_path / "both", "evaluated", of=long, correct=[1, 1])
    alone = collect([tmp_path / "both"])
    (comparison,) = compare(alone)
    assert marked(comparison) == {"CFT": ("not recorded: budget of CFT", "not recorded: data of CFT")}
    assert "† CFT and SFT cannot be told to agree: no record of the budget of CFT, the data of CFT." in comparison.notes
    with pytest.raises(ReportError, match="no record of the budget of CFT"):
        compare(alone, strict=True)
    comparison = compared(tmp_path)  # its training is among the runs
    (run,) = comparison.arms[1].runs
    assert run.folder.name == "evaluated"
    assert marked(comparison) == {"CFT": ("budget: steps 20 and 10",)}
    assert run.metrics["val/loss_critical"].value == 0.25
    curves = frames.learning_curves([comparison])
    assert curves.loc[curves["metric"] == "val/loss", ["step", "value"]].to_numpy().tolist() == [[20, 0.5]]
    assert frames.compute_spent([comparison], manifest={})["seconds"].tolist() == [3.0, 3.0]


def test_arms_without_sft_are_held_against_one_another(tmp_path: Path) -> None:
    other = arm("critical", "probability", **{"loss.normalizer": "response"})
    write_run(tmp_path, "cft", arm("critical"), seed=0, correct=[1, 0], budget=SHORT)
    write_run(tmp_path, "dft", other, seed=0, correct=[1, 1], budget=LONG)
    comparison = compared(tmp_path)
    marks = ("budget: steps 20 and 10", "normalizer: response and critical")
    assert marked(comparison) == {"CFT + DFT, normalizer=response": marks} or marked(comparison) == {"CFT + DFT": marks}
    _, rows = grid(comparison)
    assert [row[0].endswith(MARK) for row in rows] == [False, True]
    assert any("differ in budget: steps 20 and 10; normalizer" in note for note in comparison.notes)
    told = frames.arms_frame([comparison])[["marks", "marked_against"]].to_numpy().tolist()
    assert told == [["", ""], ["; ".join(marks), "CFT"]]
    assert refused(tmp_path)


def test_two_sft_arms_and_the_base_model_leave_no_way_around_the_marks(tmp_path: Path) -> None:
    write_run(tmp_path, "base", {"model": "tiny"}, seed=0, correct=[0, 0, 1], stage="evaluate")
    for name, key, spent in (("a", arm("all"), SHORT), ("b", arm("all"), LONG), ("c", arm("critical"), SHORT)):
        key |= {"trainer.max_epochs": spent["steps"]}
        write_run(tmp_path, name, key, seed=0, correct=[1, 0, 1], budget=spent)
    comparison = compared(tmp_path)
    assert marked(comparison) == {"SFT, max_epochs=20": ("budget: steps 20 and 10",)}  # two of three are alike
    titles, rows = grid(comparison)
    at = titles.index(f"minus {BASE}")
    assert [(row[0].endswith(MARK), row[at].endswith(MARK)) for row in rows] == [
        (label == "SFT, max_epochs=20", False) for label in [a.label for a in comparison.arms]
    ]
    assert {*frames.differences_frame([comparison])["marks"]} == {""}  # of differences to the base model
    assert refused(tmp_path)


def test_strict_passes_only_what_is_alike_pairwise(tmp_path: Path) -> None:
    """Whatever arms there are: no mark is the same as no pair of trained arms that differs."""
    for i, spent in enumerate(product((SHORT, LONG), repeat=3)):
        folder = tmp_path / str(i)
        masks = ("critical", "numeric", "complement")
        for mask, one in zip(masks, spent, strict=True):
            write_run(folder, mask, arm(mask), seed=0, correct=[1, 0], budget=one)
        (comparison,) = compare(collect([folder]))
        pairs = [marks_between(a, b) for a in comparison.arms for b in comparison.arms if a is not b]
        assert bool(marked(comparison)) is any(pairs) is (len({one["steps"] for one in spent}) > 1)
        assert len(marked(comparison)) == min(sum(s is which for s in spent) for which in (SHORT, LONG))


def test_a_checkpoint_of_unknown_training_is_marked_beside_trained_arms_alone(tmp_path: Path) -> None:
    write_run(tmp_path, "base", {"model": "tiny"}, seed=0, correct=[0, 0], stage="evaluate")
    write_run(tmp_path, "unknown", {"model": "r/export", "weights": "abc"}, seed=0, correct=[1, 1], stage="evaluate")
    assert not refused(tmp_path)
    write_run(tmp_path, "sft", arm("all"), seed=0, correct=[1, 0])
    comparison = compared(tmp_path)
    label = "checkpoint r/export (weights abc)"
    assert marked(comparison) == {label: (f"not recorded: training of {label}",)}
    assert refused(tmp_path)


def test_seeds_of_one_arm_under_two_budgets_are_marked(tmp_path: Path) -> None:
    for seed, spent in enumerate((SHORT, LONG)):
        write_run(tmp_path, str(seed), arm("all"), seed=seed, correct=[1, 0], budget=spent)
    comparison = compared(tmp_path)
    assert marked(comparison) == {"SFT": ("budget: steps 10/20",)}
    assert "† The seeds of SFT differ in budget: steps 10/20." in comparison.notes
