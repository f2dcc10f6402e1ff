"""Names of arms and the baseline: SFT is plain SFT alone, and each choice of a method is in its name or its entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cft.report.arms import Comparison
from cft.report.compare import collect, compare
from cft.report.names import is_sft, name_of
from cft.report.table import cells
from tests.report.test_report import arm, write_run

PLAIN = {"loss": "nll", "reference": "none", "groups": "none"}


def method(mask: str = "all", weighting: str = "uniform", *values: tuple[str, Any], **more: Any) -> dict[str, Any]:
    """As train.py writes it (tests/runs/test_arm.py)."""
    return arm(mask, weighting, **(PLAIN | more | dict(values)))


def compared(root: Path, *keys: dict[str, Any], settings: list[dict[str, Any]] | None = None) -> Comparison:
    """One run of each. settings: that each recorded."""
    for i, key in enumerate(keys):
        more = {} if settings is None else {"settings": settings[i]}
        write_run(root, str(i), key, seed=0, correct=[1, 0, i % 2], **more)
    (comparison,) = compare(collect([root]))
    return comparison


def labels(comparison: Comparison) -> list[str]:
    return [found.label for found in comparison.arms]


KL = "regularizer@loss.regularizers.kl"
NAMES: list[tuple[dict[str, Any], str]] = [
    (method(), "SFT"),
    (method(reference="annotation"), "SFT"),  # which plain -log p does not look at
    (method(**{"loss.normalizer": "sequence"}), "SFT"),
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
    found = compared(tmp_path, method(loss="gem"), method("critical"))
    assert labels(found) == ["CFT", "gem"]
    assert [a.reference for a in found.arms] == ["", ""]


def test_losses_on_all_tokens_have_one_baseline(tmp_path: Path) -> None:
    losses = ("nll", "nll_entropy", "psft")
    found = compared(tmp_path, *(method(loss=loss, reference="annotation") for loss in losses))
    assert labels(found) == ["SFT", "nll_entropy", "psft"]
    assert [a.reference for a in found.arms] == ["", "SFT", "SFT"]
    assert [a.difference is None for a in found.arms] == [True, False, False]
    titles, _ = cells(found)
    assert "minus SFT" in titles


def test_arms_of_one_name_are_told_apart_by_what_they_were_given(tmp_path: Path) -> None:
    found = compared(tmp_path, *(method(loss="psft", reference=name) for name in ("annotation", "initial")))
    assert labels(found) == ["psft, reference=annotation", "psft, reference=initial"]


def test_an_exponent_stands_beside_that_of_the_option(tmp_path: Path) -> None:
    own = method("all", "probability", ("weighting.exponent", 0.3))
    recorded = [{"weighting.exponent": 0.3}, {"weighting.exponent": 1.0}]
    found = compared(tmp_path, own, method(weighting="probability"), settings=recorded)
    assert labels(found) == ["DFT", "probability, exponent=0.3"]
    titles, rows = cells(found)
    assert [row[titles.index("exponent")] for row in rows] == ["1.0", "0.3"]


def test_an_option_within_an_option_explains_its_settings(tmp_path: Path) -> None:
    keys = [method("complement", **{"mask@mask.of": of}) for of in ("critical", "numeric")]
    recorded = [{"mask.of._target_": of, "mask.of.rule": rule} for of, rule in (("C", "all"), ("N", None))]
    found = compared(tmp_path, *keys, settings=recorded)
    assert labels(found) == ["complement(critical)", "complement(numeric)"]
    assert found.varying == ("mask@mask.of",)
