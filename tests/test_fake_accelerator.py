"""Engines and training steps under a GPU's rules about devices, without one: see tests/fake_accelerator.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging import version

from tests.methods import OF_GROUPS, OPTIONS

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(
        version.parse(torch.__version__) < version.parse("2.13"),
        reason="older versions of torch cannot make views of a wrapped tensor in inference mode",
    ),
]
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


def driven(folder: Path) -> dict[str, dict[str, Any]]:
    """A process of its own: torch counts devices at the first backward pass, and a backend cannot be taken away again."""
    out = folder / "found.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, str(DRIVER), str(out)], capture_output=True, text=True, timeout=900, env=environment
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return driven(tmp_path_factory.mktemp("found"))


@pytest.fixture
def result(found: dict[str, dict[str, Any]], check: str) -> dict[str, Any]:
    """What the driver found of one check."""
    assert "error" not in found[check], found[check]["error"]
    return found[check]


@pytest.mark.parametrize("check", ["greedy ids", "sampled ids"])
def test_engines_decode_the_cpus_ids(result: dict[str, Any]) -> None:
    assert result["equal"] == [result["forks"]] * 2


@pytest.mark.parametrize("check", ["scores"])
def test_scores_are_the_cpus(result: dict[str, Any]) -> None:
    assert result["difference"] < 1e-5
    assert result["same_ranks"]


@pytest.mark.parametrize("check", (*OPTIONS, *OF_GROUPS))
def test_a_training_step_is_the_cpus(result: dict[str, Any]) -> None:
    """In both layouts: loss and gradient norm."""
    for layout in ("padded", "packed"):
        loss, norm, expected_loss, expected_norm = result[layout]
        assert (loss, norm) == pytest.approx((expected_loss, expected_norm), rel=1e-5), layout


@pytest.mark.parametrize("check", BUDGETS)
def test_a_step_stays_within_its_budget(result: dict[str, Any], check: str) -> None:
    assert result["kernels"] > 50  # or nothing was counted
    for name, most in BUDGETS[check].items():
        assert result[name] <= most, (name, result)


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


@pytest.mark.parametrize("check", ["planted"])
def test_code_without_a_mistake_is_left_alone(result: dict[str, Any]) -> None:
    assert result["none"]["found"] == ""
