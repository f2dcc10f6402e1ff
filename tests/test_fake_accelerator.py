"""Engines and training steps under a GPU's rules about devices, without one: see tests/fake_accelerator.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging import version

from tests.methods import OF_GROUPS, OPTIONS

pytestmark = pytest.mark.skipif(
    version.parse(torch.__version__) < version.parse("2.13"),
    reason="older versions of torch cannot make views of a wrapped tensor in inference mode",
)
DRIVER = Path(__file__).resolve().parent / "accelerator_driver.py"
# What a step may cost: waits for the device first, for each leaves the GPU idle while the host prepares what follows. A
# change that needs more has a reason, which belongs beside the number.
# Kernels are of two layers and those around them, a tenth above what was counted: transformers' code is in it.
BUDGETS = {
    # One wait for the check that logits are finite, two for the tokens and their margins.
    "decode step, greedy": {"syncs": 3, "copies": 2, "kernels": 130},
    "decode step, greedy, shared": {"syncs": 3, "copies": 2, "kernels": 165},
    # Each kind of sampling reads its tokens and its margins; top_p < 1 goes round until each row's nucleus is found.
    "decode step, sampled": {"syncs": 13, "copies": 6, "kernels": 275},
    # Lengths of rows, eligible tokens, and each mask that picks some of them.
    "training step, padded": {"syncs": 15, "copies": 0, "kernels": 400},
    "training step, packed": {"syncs": 16, "copies": 0, "kernels": 440},
}


# In the quick tests: a process that tries one of each kind.
FEW = ("greedy ids", "scores", "decode step, greedy", "training step, packed", "weighting=propagation")


def driven(folder: Path, *checks: str) -> dict[str, dict[str, Any]]:
    """A process of its own: torch counts devices at the first backward pass, and a backend cannot be taken away again."""
    out = folder / "found.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, str(DRIVER), str(out), *checks], capture_output=True, text=True, timeout=900, env=environment
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return driven(tmp_path_factory.mktemp("few"), *FEW)


@pytest.fixture(scope="module")
def found_of_others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of every check but the few."""
    return driven(tmp_path_factory.mktemp("others"))


@pytest.fixture
def result(request: pytest.FixtureRequest, check: str) -> dict[str, Any]:
    """What the driver found of one check."""
    found = request.getfixturevalue("found" if check in FEW else "found_of_others")[check]
    assert "error" not in found, found["error"]
    return found


def few_quick(checks: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "check", [c if c in FEW else pytest.param(c, marks=pytest.mark.slow) for c in checks]
    )


@few_quick(["greedy ids", "sampled ids"])
def test_engines_decode_the_cpus_ids(result: dict[str, Any]) -> None:
    assert result["equal"] == [result["forks"]] * 2


@few_quick(["scores"])
def test_scores_are_the_cpus(result: dict[str, Any]) -> None:
    assert result["difference"] < 1e-5
    assert result["same_ranks"]


@few_quick((*OPTIONS, *OF_GROUPS))
def test_a_training_step_is_the_cpus(result: dict[str, Any]) -> None:
    """In both layouts: loss and gradient norm."""
    for layout in ("padded", "packed"):
        loss, norm, expected_loss, expected_norm = result[layout]
        assert (loss, norm) == pytest.approx((expected_loss, expected_norm), rel=1e-5), layout


@few_quick(BUDGETS)
def test_a_step_stays_within_its_budget(result: dict[str, Any], check: str) -> None:
    assert result["kernels"] > 50  # or nothing was counted
    for name, most in BUDGETS[check].items():
        assert result[name] <= most, (name, result)


@pytest.mark.slow
@pytest.mark.parametrize("check", ["planted"])
@pytest.mark.parametrize(
    ("mistake", "message", "file"),
    [
        ("uniform", "on cpu beside fakegpu", "cft/engines/sampling.py"),
        ("positions", "on cpu beside fakegpu", "cft/training/"),
        ("array", "numpy() of a tensor on fakegpu", "cft/engines/sampling.py"),
    ],
)
def test_a_device_mistake_is_found_with_its_place(
    result: dict[str, Any], mistake: str, message: str, file: str
) -> None:
    text = result[mistake]["found"]
    assert message in text
    assert file in text
    assert text.rpartition(":")[2].isdigit()


@pytest.mark.slow
@pytest.mark.parametrize("check", ["planted"])
def test_code_without_a_mistake_is_left_alone(result: dict[str, Any]) -> None:
    assert result["none"]["found"] == ""
