"""Arms and their intervals on the problems that all share, and what is refused because it cannot be compared."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from cft.evaluation.intervals import bootstrap_interval, paired_two_way_bootstrap, two_way_bootstrap
from cft.evaluation.paired_tests import holm, paired_difference
from cft.report import frames
from cft.report.arm_names import BASE
from cft.report.arms import Comparison
from cft.report.compare import compare
from cft.report.read import ReportError, collect
from cft.report.tables import write_csv
from experiments.accuracy_by_length import curve
from tests.results import arm, compared, draws, grid, read_csv, write_run


def test_runs_that_differ_in_their_seed_make_one_arm_and_intervals_are_two_way(comparison: Comparison) -> None:
    assert [(a.label, len(a.runs)) for a in comparison.arms] == [(BASE, 1), ("SFT", 3), ("CFT", 3), ("random mask", 3)]
    assert comparison.problems == 40
    table = [draws(10 + seed, 0.6) for seed in (0, 1, 2)]
    cft, sft = comparison.arms[2], comparison.arms[1]
    assert cft.metrics["eval/accuracy"].interval == two_way_bootstrap(table, within=(0, 1))
    assert cft.metrics["eval/accuracy"].scope == "seeds and problems"
    assert cft.reference == "SFT"
    theirs = [draws(seed, 0.4) for seed in (0, 1, 2)]
    assert cft.difference == paired_two_way_bootstrap(table, theirs, resamples=10_000)
    tested = paired_difference(table, theirs, pair_seeds=True)
    contrasts = [a.contrasts["eval/accuracy"] for a in comparison.arms if a.contrasts]
    assert contrasts[1].p == tested.p
    assert [c.holm for c in contrasts] == holm([c.p for c in contrasts])
    assert sft.difference is None
    assert comparison.arms[0].metrics["eval/accuracy"].interval == bootstrap_interval(draws(99, 0.3))


def test_metrics_without_values_of_single_problems_are_resampled_over_seeds_and_marked(comparison: Comparison) -> None:
    entropy = comparison.arms[2].metrics["eval/entropy"]
    assert entropy.scope == "seeds"
    half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem([0.1, 0.2, 0.3])  # Student's interval of three values
    assert entropy.interval.value == pytest.approx(0.2)
    assert entropy.interval.high - 0.2 == pytest.approx(half, rel=0.15)
    titles, rows = grid(comparison)
    assert rows[2][titles.index("entropy (nats)")].endswith("]*")
    assert "distinct-2" not in titles  # null everywhere: not defined


def test_twelve_runs_are_twelve_rows_of_one_comparison(tmp_path: Path) -> None:
    jobs = [
        (m, w, s)
        for m in ("all", "critical", "random_like_critical")
        for w in ("uniform", "probability")
        for s in (0, 1)
    ]
    for i, (mask, weighting, seed) in enumerate(jobs):
        write_run(tmp_path, str(i), arm(mask, weighting), seed=seed, correct=draws(i, 0.5))
    comparisons = compare(collect([tmp_path]))
    assert len(comparisons) == 1
    assert [a.label for a in comparisons[0].arms] == [
        "SFT",
        "CFT",
        "random mask",
        "DFT",
        "CFT + DFT",
        "random mask + DFT",
    ]
    write_csv(tmp_path / "comparison.csv", frames.runs_frame(comparisons))
    rows = read_csv(tmp_path / "comparison.csv")
    assert sorted((r["mask"], r["weighting"], int(r["seed"])) for r in rows) == sorted(jobs)
    for record in rows:
        i = jobs.index((record["mask"], record["weighting"], int(record["seed"])))
        assert float(record["eval/accuracy"]) == pytest.approx(np.mean(draws(i, 0.5)))


def test_arms_on_different_problems_are_refused_by_name(runs_folder: Path) -> None:
    write_run(runs_folder, "other", arm("numeric"), seed=0, correct=[1] * 40, ids=[f"q{i}" for i in range(40)])
    with pytest.raises(ReportError, match="different problems: 40 and 40, 0 in common") as error:
        compare(collect([runs_folder]))
    assert "'numeric'" in str(error.value)


def test_problems_of_the_same_ids_and_other_content_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0], problems_sha256="a" * 64)
    write_run(tmp_path, "b", arm("critical"), seed=0, correct=[1, 0], problems_sha256="b" * 64)
    with pytest.raises(ReportError, match=r"'SFT'.*'CFT'.*sha256 aaaaaaaaaaaa and bbbbbbbbbbbb"):
        compare(collect([tmp_path]))


def test_arms_measured_in_different_ways_are_refused_by_name_and_value(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0], evaluation={"temperature": 1.0, "seed": 0})
    write_run(tmp_path, "b", arm("critical"), seed=0, correct=[1, 0], evaluation={"temperature": 0.7, "seed": 1})
    with pytest.raises(ReportError, match=r"'SFT'.*'CFT'.*temperature: 1.0 and 0.7"):
        compare(collect([tmp_path]))


@pytest.mark.parametrize(
    "other", [{"ids": ["q0", "q1"]}, {"evaluation": {"temperature": 0.7}}], ids=["problems", "sampling"]
)
def test_one_arm_and_seed_measured_in_two_ways_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0], evaluation={"temperature": 1.0})
    write_run(tmp_path, "b", arm("all"), seed=0, correct=[1, 1], **({"evaluation": {"temperature": 1.0}} | other))
    with pytest.raises(ReportError, match=r"different problems|temperature: 1\.0 and 0\.7"):
        compare(collect([tmp_path]))


def test_benchmarks_are_compared_apart(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0])
    write_run(tmp_path, "b", arm("all"), seed=0, correct=[1, 0, 1], benchmark="gsm8k")
    assert [(c.benchmark, c.problems) for c in compare(collect([tmp_path]))] == [("arithmetic", 2), ("gsm8k", 3)]


def test_a_repeated_seed_counts_once_the_newer_one(tmp_path: Path) -> None:
    old = write_run(tmp_path, "z_old", arm("all"), seed=0, correct=[0, 0])
    new = write_run(tmp_path, "a_new", arm("all"), seed=0, correct=[1, 1])
    os.utime(old / "results.json", (1, 1))
    os.utime(new / "results.json", (2, 2))
    (comparison,) = compare(collect([tmp_path, new]))  # a folder given twice is no repetition
    assert [run.folder.name for run in comparison.runs] == ["a_new"]
    assert any("1 run of an arm and seed that a newer one has is left out" in note for note in comparison.notes)


def test_the_base_model_may_come_from_the_trained_runs(tmp_path: Path) -> None:
    base = {
        "metrics": {"eval/accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}},
        "per_problem": {"id": ["p0", "p1"], "correct": [1, 0]},
    }
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0], base=base)
    comparison = compared(tmp_path)
    assert comparison.arms[0].label == BASE
    assert comparison.arms[0].metrics["eval/accuracy"].interval.high == 0.6


def test_the_stated_base_is_of_the_shared_problems(tmp_path: Path) -> None:
    ids = [f"p{i}" for i in range(4)]
    base = {
        "metrics": {"eval/accuracy": {"value": 0.5, "low": 0.0, "high": 1.0}},
        "per_problem": {"id": ids, "correct": [1, 1, 0, 0]},
    }
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0], ids=ids[:2], base=base)
    found = compared(tmp_path)
    assert {a.label: a.metrics["eval/accuracy"].interval.value for a in found.arms} == {"base model": 1.0, "SFT": 0.5}


def test_runs_on_other_numbers_of_problems_are_compared_on_those_they_share(tmp_path: Path) -> None:
    ids = [f"p{i}" for i in range(6)]
    write_run(tmp_path, "few", arm("all"), seed=0, correct=[1, 0, 0], ids=ids[:3])
    write_run(tmp_path, "many", arm("critical"), seed=0, correct=[0, 1, 1, 1, 1, 1], ids=[*ids[3:], *ids[:3]])
    write_run(tmp_path, "again", arm("critical"), seed=0, correct=[1], ids=ids[:1])  # fewer of an arm and seed
    found = compared(tmp_path)
    assert found.problems == 3
    values = {a.label: a.metrics["eval/accuracy"].interval.value for a in found.arms}
    assert values == {"SFT": pytest.approx(1 / 3), "CFT": 1.0}
    cft = next(a for a in found.arms if a.label == "CFT")
    assert cft.difference is not None
    assert cft.difference.value == pytest.approx(2 / 3)
    assert len(cft.runs) == 1
    assert "eval/entropy" not in cft.metrics  # one value for all six problems
    notes = " ".join(found.notes)
    assert "on the 3 problems that all 2 runs share; they were measured on 3 or 6" in notes
    assert "measured on more problems" in notes


@pytest.mark.parametrize("hashes, noted", [(("a", "a"), False), (("a", "b"), True)])
def test_runs_on_different_rows_of_an_annotation_are_noted(
    tmp_path: Path, hashes: tuple[str, str], noted: bool
) -> None:
    for i, digest in enumerate(hashes):
        data = {"fingerprint": "f", "rows_sha256": digest}
        write_run(tmp_path, str(i), arm("all"), seed=i, correct=[1, 0], data=data)
    comparison = compared(tmp_path)
    assert any("different rows" in note for note in comparison.notes) is noted


@pytest.mark.parametrize("seeds, noted", [(((0, 1), (0, 1)), False), (((0, 1), (0,)), True), (((0, 1), (5, 6)), True)])
def test_arms_of_other_seeds_are_noted(tmp_path: Path, seeds: tuple[tuple[int, ...], ...], noted: bool) -> None:
    write_run(tmp_path, "base", {"model": "tiny"}, seed=7, correct=[0, 0], stage="evaluate")
    for mask, chosen in zip(("all", "critical"), seeds, strict=True):
        for seed in chosen:
            write_run(tmp_path, f"{mask}{seed}", arm(mask), seed=seed, correct=[1, seed % 2])
    comparison = compared(tmp_path)
    (ours, theirs) = (", ".join(map(str, chosen)) for chosen in seeds)
    note = f"The arms were not trained with the same seeds: {ours} (SFT); {theirs} (CFT)."
    assert any(said.startswith(note) for said in comparison.notes) is noted


def test_decoding_rules_are_arms_of_one_model_and_no_repetitions(tmp_path: Path) -> None:
    """Two rules, and the model as it is: three arms side by side, in one curve of accuracy against length."""
    made = {"num_samples": 0, "max_new_tokens": 8}
    for number, scale in enumerate((None, 1.0, 2.0)):
        key: dict[str, Any] = {"model": "tiny"}
        more: dict[str, Any] = {"settings": {"model.name": "tiny"}, "evaluation": made}
        if scale is not None:
            key |= {"decoding": "stop_scaling", "decoding.scale": scale}
            more["settings"] = {"model.name": "tiny", "decoding.scale": scale}
            more["evaluation"] = made | {"decoding": f"stop_scaling 1 (scale={scale})"}
        length = {"value": 9.0 - number, "low": 1.0, "high": 9.0}
        metrics = {"eval/accuracy": length, "eval/response_tokens": length, "eval/cut_off_rate": length}
        write_run(tmp_path, f"{scale}", key, seed=0, correct=[1, 0, 1], stage="evaluate", metrics=metrics, **more)
    labels = [
        "base model",
        "base model, decoding=stop_scaling, scale=1.0",
        "base model, decoding=stop_scaling, scale=2.0",
    ]
    found = compared(tmp_path)
    assert [one.label for one in found.arms] == labels
    assert "no record" not in str((found.arms, found.notes))  # nothing was trained
    points = curve([tmp_path])
    assert [(p.label, p.tokens.value) for p in points] == list(zip(reversed(labels), (7.0, 8.0, 9.0), strict=True))
