"""Which arm a run is: the method's options, and whatever departs from what those options say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from cft.runs.arm import ARM_KEYS, METHOD, arm_of
from tests.stage import CONF, job

PLAIN = {
    "model": "tiny_arith",
    "data.annotation": "tiny_arith",
    "mask": "all",
    "weighting": "uniform",
    "loss": "nll",
    "reference": "none",
    "groups": "none",
    "inputs": "tokens",
    "loss.normalizer": "critical",
    "optimizer.lr": 1e-4,
    "trainer.max_epochs": 1,
}
SAME = ("data.annotation=tiny_arith", "optimizer.lr=1e-4", "trainer.max_epochs=1")


def arm(*overrides: str) -> dict[str, Any]:
    """Of a job of cft train with these overrides."""
    return arm_of(job("train", *SAME, *overrides), ARM_KEYS)


def slow(overrides: tuple[str, ...], differs: dict[str, Any]) -> Any:
    return pytest.param(overrides, differs, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "overrides, differs",
    [
        ((), {}),
        slow(("seed=3", "resume=auto", "loss=nll", "weighting=uniform"), {}),
        slow(("experiment=gem",), {"loss": "gem"}),
        (
            ("experiment=upft", "optimizer.lr=1e-4", "trainer.max_epochs=1"),
            {"data.responses": "all", "data.prefix": "upft"},  # other rows, though the method is plain
        ),
        slow(("experiment=sft_go",), {"loss": "sft_go", "groups": "tfidf", "loss.normalizer": "sequence"}),
        slow(("weighting=probability", "weighting.exponent=1"), {"weighting": "probability"}),
        (("weighting=probability", "weighting.exponent=.3"), {"weighting": "probability", "weighting.exponent": 0.3}),
        slow(("experiment=beyond_log",), {"loss": "power", "loss.token_loss.exponent": 1.0}),
        slow(("mask=complement",), {"mask": "complement", "mask@mask.of": "critical"}),
        (("mask=complement", "mask@mask.of=numeric"), {"mask": "complement", "mask@mask.of": "numeric"}),
        (
            (
                "reference=initial",
                "+regularizer@loss.regularizers.kl=kl_to_reference",
                "loss.regularizers.kl.where=other",
            ),
            {
                "reference": "initial",
                "regularizer@loss.regularizers.kl": "kl_to_reference",
                "loss.regularizers.kl.where": "other",
            },
        ),
        slow(("mask=random_like_critical",), {"mask": "random_like_critical"}),  # its seed is the run's: no departure
        slow(("mask=random_like_critical", "mask.seed=9"), {"mask": "random_like_critical", "mask.seed": 9}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_arm_holds_the_method_and_what_departs_from_its_options(
    overrides: tuple[str, ...], differs: dict[str, Any]
) -> None:
    assert arm("mask=all", *overrides) == PLAIN | differs


def test_an_option_within_an_option_within_an_option() -> None:
    nested = ("mask=complement", "mask@mask.of=random_like", "mask@mask.of.like=numeric")
    options = {"mask": "complement", "mask@mask.of": "random_like", "mask@mask.of.like": "numeric"}
    assert arm(*nested) == PLAIN | options


def test_options_of_another_folder_are_composed_from_there(tmp_path: Path) -> None:
    (tmp_path / "weighting").mkdir()
    (tmp_path / "weighting" / "mild.yaml").write_text("_target_: cft.weightings.Probability\nexponent: 0.3\n")
    elsewhere = f"hydra.searchpath=['file://{tmp_path}']"
    found = arm(elsewhere, "mask=all", "weighting=mild")
    assert found == PLAIN | {"weighting": "mild"}
    found = arm(elsewhere, "mask=all", "weighting=mild", "weighting.exponent=0.4")
    assert found["weighting.exponent"] == 0.4


@pytest.mark.parametrize("name", ["shad", *(pytest.param(n, marks=pytest.mark.slow) for n in ("asft", "psft"))])
def test_no_choice_of_an_experiment_is_lost(name: str) -> None:
    """Its own defaults list, read without Hydra, is the arm's."""
    found, file = arm(f"experiment={name}"), OmegaConf.load(CONF / "experiment" / f"{name}.yaml")
    for entry in OmegaConf.select(file, "defaults"):
        if not isinstance(entry, str):
            [(group, option)] = entry.items()
            if (part := group.removeprefix("override /")) in METHOD:
                assert found[part] == option
