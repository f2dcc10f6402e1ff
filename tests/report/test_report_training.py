"""What must not pass in silence: other trainings under one table, runs that are missing, arms of one name on two benchmarks."""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cft.cli.report import run as main
from cft.report import compute, curves
from cft.report.arms import BASE, MARK, Comparison, ReportError
from cft.report.choice import choose
from cft.report.compare import collect, compare
from cft.report.contrasts import marks_between
from cft.report.spreadsheet import write_arms, write_differences
from cft.report.table import cells
from cft.report.unfinished import DIVERGED, unfinished
from cft.training.callbacks.guards import REPORT
from experiments.learning_rates import best_rate, scores
from experiments.learning_rates import main as print_rates
from tests.report.test_report import arm, write_run
from tests.report.test_report_evidence import budget, searched

SHORT, LONG = budget(10)["budget"], budget(20)["budget"]


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


# ---- trained alike?


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
    (comparison,) = compare(collect([tmp_path]))  # its training is among the runs
    (run,) = comparison.arms[1].runs
    assert run.folder.name == "evaluated"
    assert marked(comparison) == {"CFT": ("budget: steps 20 and 10",)}
    assert run.metrics["val/loss_critical"].value == 0.25
    assert [c.points for c in curves.curves_of([comparison]) if c.metric == "val/loss"] == [[(20, 0.5)]]
    assert compute.training_spent([comparison])[1].seconds == 3.0


def test_arms_without_sft_are_held_against_one_another(tmp_path: Path) -> None:
    other = arm("critical", "probability", **{"loss.normalizer": "response"})
    write_run(tmp_path, "cft", arm("critical"), seed=0, correct=[1, 0], budget=SHORT)
    write_run(tmp_path, "dft", other, seed=0, correct=[1, 1], budget=LONG)
    (comparison,) = compare(collect([tmp_path]))
    marks = ("budget: steps 20 and 10", "normalizer: response and critical")
    assert marked(comparison) == {"CFT + DFT, normalizer=response": marks} or marked(comparison) == {"CFT + DFT": marks}
    _, rows = cells(comparison)
    assert [row[0].endswith(MARK) for row in rows] == [False, True]
    assert any("differ in budget: steps 20 and 10; normalizer" in note for note in comparison.notes)
    write_arms(tmp_path / "arms.csv", [comparison])
    with (tmp_path / "arms.csv").open(newline="", encoding="utf-8") as handle:
        assert [(r["marks"], r["marked_against"]) for r in csv.DictReader(handle)] == [
            ("", ""),
            ("; ".join(marks), "CFT"),
        ]
    assert refused(tmp_path)


def test_two_sft_arms_and_the_base_model_leave_no_way_around_the_marks(tmp_path: Path) -> None:
    write_run(tmp_path, "base", {"model": "tiny"}, seed=0, correct=[0, 0, 1], stage="evaluate")
    for name, key, spent in (("a", arm("all"), SHORT), ("b", arm("all"), LONG), ("c", arm("critical"), SHORT)):
        key |= {"trainer.max_epochs": spent["steps"]}
        write_run(tmp_path, name, key, seed=0, correct=[1, 0, 1], budget=spent)
    (comparison,) = compare(collect([tmp_path]))
    assert marked(comparison) == {"SFT, max_epochs=20": ("budget: steps 20 and 10",)}  # two of three are alike
    titles, rows = cells(comparison)
    at = titles.index(f"minus {BASE}")
    assert [(row[0].endswith(MARK), row[at].endswith(MARK)) for row in rows] == [
        (label == "SFT, max_epochs=20", False) for label in [a.label for a in comparison.arms]
    ]
    write_differences(tmp_path / "differences.csv", [comparison])
    with (tmp_path / "differences.csv").open(newline="", encoding="utf-8") as handle:
        assert {r["marks"] for r in csv.DictReader(handle)} == {""}  # of differences to the base model
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
    (comparison,) = compare(collect([tmp_path]))
    label = "checkpoint r/export (weights abc)"
    assert marked(comparison) == {label: (f"not recorded: training of {label}",)}
    assert refused(tmp_path)


def test_seeds_of_one_arm_under_two_budgets_are_marked(tmp_path: Path) -> None:
    for seed, spent in enumerate((SHORT, LONG)):
        write_run(tmp_path, str(seed), arm("all"), seed=seed, correct=[1, 0], budget=spent)
    (comparison,) = compare(collect([tmp_path]))
    assert marked(comparison) == {"SFT": ("budget: steps 10/20",)}
    assert "† The seeds of SFT differ in budget: steps 10/20." in comparison.notes


# ---- runs that are missing

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


@pytest.mark.parametrize("seeds, noted", [(((0, 1), (0, 1)), False), (((0, 1), (0,)), True), (((0, 1), (5, 6)), True)])
def test_arms_of_other_seeds_are_noted(tmp_path: Path, seeds: tuple[tuple[int, ...], ...], noted: bool) -> None:
    write_run(tmp_path, "base", {"model": "tiny"}, seed=7, correct=[0, 0], stage="evaluate")
    for mask, chosen in zip(("all", "critical"), seeds, strict=True):
        for seed in chosen:
            write_run(tmp_path, f"{mask}{seed}", arm(mask), seed=seed, correct=[1, seed % 2])
    (comparison,) = compare(collect([tmp_path]))
    (ours, theirs) = (", ".join(map(str, chosen)) for chosen in seeds)
    note = f"The arms were not trained with the same seeds: {ours} (SFT); {theirs} (CFT)."
    assert any(said.startswith(note) for said in comparison.notes) is noted


def test_a_rate_of_which_a_seed_is_missing_is_not_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rate, seed, score in ((0.0001, 100, 0.45), (0.0001, 101, 0.47), (0.01, 101, 0.48)):
        searched(tmp_path, "critical", rate, seed=seed, score=score, tested=False)
    without_results(tmp_path, "diverged", diverged=True)
    for rate in (0.0001, 0.01):
        searched(tmp_path, "critical", rate, seed=0, score=0.5, tested=True)
    kept, (choice,) = choose(collect([tmp_path]), key="optimizer.lr")
    assert choice.chosen == "0.0001"
    assert choice.scores == {"0.0001": [0.45, 0.47], "0.01": [float("-inf"), 0.48]}
    (comparison,) = compare(kept)
    assert any("optimizer.lr=0.01 has no run of seed 100" in note for note in comparison.notes)
    assert any("diverged), diverged" in note for note in comparison.notes)
    metric, [(_, rates)], notes = scores([tmp_path])
    assert best_rate(rates, metric=metric) == 0.0001
    assert any("optimizer.lr=0.01 has no run of seed 100" in note for note in notes)
    print_rates([tmp_path])
    assert "has no run of seed 100" in " ".join(capsys.readouterr().out.split())


def test_a_search_without_any_whole_value_is_refused(tmp_path: Path) -> None:
    searched(tmp_path, "all", 0.001, seed=100, score=0.5, tested=False)
    searched(tmp_path, "all", 0.01, seed=101, score=0.6, tested=False)
    with pytest.raises(ReportError, match=r"no value has a score for every seed.*0\.001 has no run of seed 101"):
        choose(collect([tmp_path]), key="optimizer.lr")
    metric, [(_, rates)], _ = scores([tmp_path])
    assert best_rate(rates, metric=metric) is None


def test_an_evaluated_checkpoint_is_no_second_vote(tmp_path: Path) -> None:
    """Evaluations repeat the validation score of their training."""
    for rate, seed, score in ((0.001, 0, 0.9), (0.001, 1, 0.1), (0.01, 0, 0.6), (0.01, 1, 0.6)):
        searched(tmp_path, "all", rate, seed=seed, score=score, tested=True)
        if (rate, seed) == (0.001, 0):
            for benchmark in ("b", "c"):
                searched(tmp_path / benchmark, "all", rate, seed=seed, score=score, tested=True)
    _, (choice,) = choose(collect([tmp_path]), key="optimizer.lr")
    assert (choice.chosen, choice.scores["0.001"]) == ("0.01", [0.9, 0.1])


# ---- several benchmarks


def test_arms_of_other_trainings_are_apart_on_every_benchmark(tmp_path: Path) -> None:
    for i, (rate, benchmark) in enumerate(product((0.0001, 0.01), ("a", "b"))):
        if (rate, benchmark) in ((0.0001, "b"), (0.01, "a")):
            continue
        more = {"train_seconds": 5.0 if i == 0 else 1000.0, "settings": {"optimizer.lr": rate, "data.batch_size": 4}}
        key = arm("all") | {"optimizer.lr": rate}
        folder = write_run(tmp_path, str(i), key, seed=0, correct=[1, 0], benchmark=benchmark, **more)
        (folder / "metrics.csv").write_text(f"epoch,step,train/loss\n0,1,{rate}\n")
    runs = collect([tmp_path])
    comparisons = compare(runs)
    labels = ["SFT, lr=0.0001", "SFT, lr=0.01"]
    assert [[a.label for a in c.arms] for c in comparisons] == [labels[:1], labels[1:]]
    assert [(s.part, s.seconds) for s in compute.training_spent(comparisons)] == [
        ("training: SFT, lr=0.0001", 5.0),
        ("training: SFT, lr=0.01", 1000.0),
    ]
    loss = curves.by_arm(curves.curves_of(comparisons), metric="train/loss")
    assert {label: curves.mean_curve(c) for label, c in loss.items()} == {
        labels[0]: [(1, 0.0001)],
        labels[1]: [(1, 0.01)],
    }
    assert main([str(tmp_path), "--no-annotation", "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "config_differences.csv").open(newline="", encoding="utf-8") as handle:
        (record,) = csv.DictReader(handle)
    assert record == {"setting": "optimizer.lr", labels[0]: "0.0001", labels[1]: "0.01"}


def test_a_setting_that_differs_between_benchmarks_alone_tells_arms_apart(tmp_path: Path) -> None:
    for benchmark, size in (("a", 4), ("b", 8)):
        settings = {"data.batch_size": size}
        write_run(tmp_path, benchmark, arm("all"), seed=0, correct=[1, 0], benchmark=benchmark, settings=settings)
    assert [c.arms[0].label for c in compare(collect([tmp_path]))] == ["SFT, batch_size=4", "SFT, batch_size=8"]


def test_a_training_that_was_measured_twice_is_spent_once(tmp_path: Path) -> None:
    for benchmark, seeds in (("a", (0, 1)), ("b", (1, 2))):
        for seed in seeds:
            more = {"train_seconds": float(seed), "benchmark": benchmark}
            write_run(tmp_path, f"{benchmark}{seed}", arm("all"), seed=seed, correct=[1, 0], **more)
    (spent,) = compute.training_spent(compare(collect([tmp_path])))
    assert (spent.seconds, spent.runs) == (1.0, 3)
