"""What an arm is and is called: SFT is plain SFT alone, and whatever distinguishes runs but for their seed is in the label."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cft.cli.report import run as main
from cft.report import frames
from cft.report.arm_names import BASE, is_sft, name_of
from cft.report.arms import Comparison
from cft.report.compare import compare
from cft.report.read import collect
from tests.results import TARGETS, arm, compared, grid, read_csv, write_run


def method(mask: str = "all", weighting: str = "uniform", *values: tuple[str, Any], **more: Any) -> dict[str, Any]:
    """As train.py writes it (tests/runs/test_arm.py)."""
    return arm(mask, weighting, **(more | dict(values)))


def of_arms(root: Path, *keys: dict[str, Any], settings: list[dict[str, Any]] | None = None) -> Comparison:
    """One run of each. settings: that each recorded."""
    for i, key in enumerate(keys):
        more = {} if settings is None else {"settings": settings[i]}
        write_run(root, str(i), key, seed=0, correct=[1, 0, i % 2], **more)
    return compared(root)


def labels(comparison: Comparison) -> list[str]:
    return [found.label for found in comparison.arms]


KL = "regularizer@loss.regularizers.kl"
NAMES: list[tuple[dict[str, Any], str]] = [
    (method(), "SFT"),
    (method(reference="annotation"), "SFT"),  # which plain -log p does not look at
    (method(**{"loss.normalizer": "sequence"}), "SFT"),
    (method(**{"data.responses": "all", "data.prefix": "upft"}), "SFT, responses=all, prefix=upft"),
    (method("critical"), "CFT"),
    (method("critical", **{"mask.rule": "any"}), "critical, rule=any"),
    (method("numeric"), "numeric"),
    (method("complement", **{"mask@mask.of": "numeric"}), "complement(numeric)"),
    (method(weighting="probability"), "DFT"),
    (method("all", "probability", ("weighting.exponent", 0.3)), "probability, exponent=0.3"),
    (method("critical", "probability", ("weighting.exponent", 0.3)), "CFT + probability, exponent=0.3"),
    (method(weighting="focal"), "focal"),
    (method(loss="gem"), "gem"),
    (method(loss="label_smoothing"), "label_smoothing"),
    (method("critical", loss="gem"), "CFT + gem"),
    (method("all", "uniform", ("loss.token_loss.exponent", 1.0), loss="power"), "power, exponent=1.0"),
    (method(loss="sft_go", groups="tfidf"), "sft_go"),
    (method(loss="sft_go", groups="critical"), "sft_go, groups=critical"),
    (method(weighting="probability", loss="asft", reference="initial"), "ASFT"),
    (method(loss="asft", reference="initial"), "KL of asft"),
    (method(**{KL: "kl_to_reference"}), "SFT + kl_to_reference"),
    (method("critical", **{KL: "sed", "loss.regularizers.kl.where": "other"}), "CFT + sed, kl.where=other"),
    (
        method(
            "all",
            "uniform",
            ("loss.regularizers.kl._target_", "cft.losses.Regularizer"),
            ("loss.regularizers.kl.token_loss._target_", "cft.losses.KLToReference"),
            ("loss.regularizers.kl.coefficient.initial", 0.1),
        ),
        "SFT + KLToReference",
    ),
    (method(**{"loss.token_loss._target_": "cft.losses.GEM"}), "nll, token_loss=GEM"),
    (method(**{"mask._target_": "mine.Mask"}), "all, mask=Mask"),
]


@pytest.mark.parametrize("key, name", NAMES, ids=[name for _, name in NAMES])
def test_a_name_says_every_choice_and_sft_is_plain(key: dict[str, Any], name: str) -> None:
    assert name_of(key) == name
    assert is_sft(key) is (name == "SFT")


def test_a_sweep_without_sft_has_neither_that_label_nor_that_baseline(tmp_path: Path) -> None:
    found = of_arms(tmp_path, method(loss="gem"), method("critical"))
    assert labels(found) == ["CFT", "gem"]
    assert [a.reference for a in found.arms] == ["", ""]


def test_losses_on_all_tokens_have_one_baseline(tmp_path: Path) -> None:
    losses = ("nll", "nll_entropy", "psft")
    found = of_arms(tmp_path, *(method(loss=loss, reference="annotation") for loss in losses))
    assert labels(found) == ["SFT", "nll_entropy", "psft"]
    assert [a.reference for a in found.arms] == ["", "SFT", "SFT"]
    assert [a.difference is None for a in found.arms] == [True, False, False]
    titles, _ = grid(found)
    assert "minus SFT" in titles


def test_arms_of_one_name_are_told_apart_by_what_they_were_given(tmp_path: Path) -> None:
    found = of_arms(tmp_path, *(method(loss="psft", reference=name) for name in ("annotation", "initial")))
    assert labels(found) == ["psft, reference=annotation", "psft, reference=initial"]


def test_an_exponent_stands_beside_that_of_the_option(tmp_path: Path) -> None:
    own = method("all", "probability", ("weighting.exponent", 0.3))
    recorded = [{"weighting.exponent": 0.3}, {"weighting.exponent": 1.0}]
    found = of_arms(tmp_path, own, method(weighting="probability"), settings=recorded)
    assert labels(found) == ["DFT", "probability, exponent=0.3"]
    titles, rows = grid(found)
    assert [row[titles.index("exponent")] for row in rows] == ["1.0", "0.3"]


def test_an_option_within_an_option_explains_its_settings(tmp_path: Path) -> None:
    keys = [method("complement", **{"mask@mask.of": of}) for of in ("critical", "numeric")]
    recorded = [{"mask.of._target_": of, "mask.of.rule": rule} for of, rule in (("C", "all"), ("N", None))]
    found = of_arms(tmp_path, *keys, settings=recorded)
    assert labels(found) == ["complement(critical)", "complement(numeric)"]
    assert found.varying == ("mask@mask.of",)


def test_labels_tell_arms_apart_by_what_differs(tmp_path: Path) -> None:
    for i, rate in enumerate((0.001, 0.003)):
        write_run(tmp_path, str(i), arm("critical", **{"optimizer.lr": rate}), seed=0, correct=[1, 0])
    comparison = compared(tmp_path)
    assert [a.label for a in comparison.arms] == ["CFT, lr=0.001", "CFT, lr=0.003"]
    assert comparison.varying == ("optimizer.lr",)


def test_arms_that_differ_in_a_setting_of_their_yaml_are_apart_and_labelled_by_it(tmp_path: Path) -> None:
    for i, (mask, size, rule) in enumerate([("all", 16, None), ("critical", 16, "all"), ("critical", 32, "all")]):
        settings = {"mask._target_": TARGETS[mask], "mask.rule": rule, "data.batch_size": size, "optimizer.lr": 0.1}
        write_run(tmp_path, str(i), arm(mask), seed=0, correct=[1, 0], settings=settings)
    comparison = compared(tmp_path)
    assert sorted(a.label for a in comparison.arms) == [
        "CFT, batch_size=16",
        "CFT, batch_size=32",
        "SFT, batch_size=16",
    ]
    assert comparison.varying == ("mask", "data.batch_size")  # the mask explains mask._target_ and mask.rule
    assert not [note for note in comparison.notes if "left out" in note]


def test_a_rule_that_differs_under_one_mask_is_shown(tmp_path: Path) -> None:
    for i, rule in enumerate(("all", "any")):
        own = {"mask.rule": rule} if rule != "all" else {}  # an arm holds what is not the option's own
        write_run(tmp_path, str(i), arm("critical", **own), seed=0, correct=[1, 0], settings={"mask.rule": rule})
    comparison = compared(tmp_path)
    assert [a.label for a in comparison.arms] == ["CFT", "critical, rule=any"]


def test_runs_without_recorded_settings_are_apart_from_those_with(tmp_path: Path) -> None:
    write_run(tmp_path, "old", arm("critical"), seed=0, correct=[1, 0])
    write_run(tmp_path, "new", arm("critical"), seed=0, correct=[1, 0], settings={"data.batch_size": 16})
    assert sorted(labels(compared(tmp_path))) == ["CFT", "CFT, batch_size=16"]


def test_an_arm_is_its_settings_however_they_were_given(tmp_path: Path) -> None:
    """On the command line, by an experiment's yaml or by default; where files lie and how long a job may take are none."""
    settings = {"data.batch_size": 16, "trainer.max_epochs": 2}
    given = ({}, {"data.batch_size": "16"}, {"trainer.log_every_n_steps": "5"}, {"interruption.max_hours": "1"})
    for seed, overrides in enumerate(given):
        write_run(tmp_path, str(seed), arm("critical", **overrides), seed=seed, correct=[1, 0], settings=settings)
    (found,) = compared(tmp_path).arms
    assert (found.label, len(found.runs)) == ("CFT", 4)
    write_run(tmp_path, "8", arm("critical"), seed=0, correct=[1, 0], settings=settings | {"data.batch_size": 8})
    write_run(tmp_path, "v", arm("critical", **{"validation.problems": "9"}), seed=0, correct=[1, 0], settings=settings)
    found = compared(tmp_path)
    expected = ["CFT, batch_size=16", "CFT, batch_size=16, problems=9", "CFT, batch_size=8"]
    assert labels(found) == expected
    assert [a.named.key["data.batch_size"] for a in found.arms] == [16, 16, 8]


def test_a_checkpoint_of_unknown_training_is_not_the_base_model(tmp_path: Path) -> None:
    write_run(tmp_path, "base", {"model": "tiny"}, seed=0, correct=[0, 0], stage="evaluate")
    unknown = {"model": "run/export", "weights": "abc123"}
    write_run(tmp_path, "unknown", unknown, seed=0, correct=[1, 1], stage="evaluate")
    write_run(tmp_path, "cft", arm("critical"), seed=0, correct=[1, 0])
    comparison = compared(tmp_path)
    assert {a.label: a.metrics["eval/accuracy"].interval.value for a in comparison.arms} == {
        BASE: 0.0,
        "CFT": 0.5,
        "checkpoint run/export (weights abc123)": 1.0,
    }
    assert set(comparison.varying) == {"model"}


def test_an_evaluated_checkpoint_joins_the_arm_it_came_from(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("critical"), seed=0, correct=[1, 0])
    merged = {**arm("critical"), "limit": "2", "benchmark": "arithmetic", "verify.workers": "1"}
    write_run(tmp_path, "b", merged, seed=1, correct=[1, 1], stage="evaluate")
    comparison = compared(tmp_path)
    assert [(a.label, len(a.runs)) for a in comparison.arms] == [("CFT", 2)]


@pytest.mark.usefixtures("undrawn")
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
    spent = frames.compute_spent(comparisons, manifest={})
    assert dict(zip(spent["part"], spent["seconds"], strict=True)) == {
        "training: SFT, lr=0.0001": 5.0,
        "training: SFT, lr=0.01": 1000.0,
    }
    loss = frames.learning_curves(comparisons).groupby("arm")
    assert {label: frames.mean_curve(lines).to_dict() for label, lines in loss} == {
        labels[0]: {1: 0.0001},
        labels[1]: {1: 0.01},
    }
    assert main([str(tmp_path), "--no-annotation", "--out", str(tmp_path / "out")]) == 0
    (record,) = read_csv(tmp_path / "out" / "config_differences.csv")
    assert record == {"setting": "optimizer.lr", labels[0]: "0.0001", labels[1]: "0.01"}


def test_a_setting_that_differs_between_benchmarks_alone_tells_arms_apart(tmp_path: Path) -> None:
    for benchmark, size in (("a", 4), ("b", 8)):
        settings = {"data.batch_size": size}
        write_run(tmp_path, benchmark, arm("all"), seed=0, correct=[1, 0], benchmark=benchmark, settings=settings)
    assert [c.arms[0].label for c in compare(collect([tmp_path]))] == ["SFT, batch_size=4", "SFT, batch_size=8"]
