"""One process, two under DDP and two under FSDP2: the same losses, also after going on under another number of processes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cft.training.checkpointing.checkpoints import path_of_step
from tests.precision import ROUNDING, assert_same
from tests.scale_driver import EVERY, STEPS, save_run
from tests.two_ranks import on_two_ranks

pytestmark = pytest.mark.numerics


@dataclass(frozen=True, slots=True)
class Trained:
    """What tests/scale_driver.py left behind."""

    folder: Path
    train: dict[int, float]
    validation: dict[int, float]
    export_difference: float


def trained(folder: Path, strategy: str, world: int, accumulate: int, *, start: Path | None = None) -> Trained:
    """8 rows a step however many processes there are."""
    folder.mkdir()
    arguments = (folder, strategy, world, accumulate, start)
    if world == 1:
        save_run(*arguments)
    else:
        on_two_ranks(save_run, *arguments)
    found = json.loads((folder / "result.json").read_text())
    by_step = [{int(step): loss for step, loss in found[name].items()} for name in ("train", "validation")]
    return Trained(folder, *by_step, found["export_difference"])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("one") / "run", "auto", 1, 4)


def assert_same_losses(found: Trained, expected: Trained, *, first: int = 1) -> None:
    for one, other in ((found.train, expected.train), (found.validation, expected.validation)):
        wanted = {step: loss for step, loss in other.items() if step >= first}
        assert one == pytest.approx(wanted, rel=ROUNDING, abs=0.0)


def test_fully_sharded_equals_one_process_and_exports_its_weights(one: Trained, tmp_path: Path) -> None:
    assert sorted(one.train) == list(range(1, STEPS + 1))
    assert sorted(one.validation) == [10, 20]
    assert len({round(loss, 3) for loss in one.train.values()}) > STEPS / 2  # a curve, not a constant
    sharded = trained(tmp_path / "fsdp", "fsdp", 2, 2)
    assert_same_losses(sharded, one)
    assert sharded.export_difference == 0.0
    assert one.export_difference == 0.0
    found, expected = (load_file(run.folder / "export" / "model.safetensors") for run in (sharded, one))
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert_same(weight, expected[name])


@pytest.mark.slow
def test_ddp_equals_one_process(one: Trained, tmp_path: Path) -> None:
    assert_same_losses(trained(tmp_path / "ddp", "ddp", 2, 2), one)


@pytest.mark.slow
def test_going_on_under_another_number_of_processes_gives_the_same_losses(one: Trained, tmp_path: Path) -> None:
    """One run, handed on: one process, two under DDP, two under FSDP2, one again, two under DDP."""
    links = (("ddp", 2, 2, EVERY), ("fsdp", 2, 2, 2 * EVERY), ("auto", 1, 4, 3 * EVERY), ("ddp", 2, 2, 4 * EVERY))
    begun = one
    for strategy, world, accumulate, step in links:
        start = path_of_step(begun.folder, step=step)
        begun = trained(tmp_path / f"from {step}", strategy, world, accumulate, start=start)
        assert_same_losses(begun, one, first=step + 1)


@pytest.mark.slow
def test_two_replicas_equal_one_process(one: Trained, tmp_path: Path) -> None:
    assert_same_losses(trained(tmp_path / "hsdp", "hsdp", 2, 2), one)


@pytest.mark.slow
def test_mixed_precision_is_the_same_training_shared_out_or_not(tmp_path: Path) -> None:
    """Under FSDP2 the residual stream is bfloat16, too: bfloat16's rounding apart, over 20 steps."""
    found = trained(tmp_path / "fsdp", "fsdp:bf16-mixed", 2, 2)
    expected = trained(tmp_path / "ddp", "ddp:bf16-mixed", 2, 2)
    assert sorted(found.train) == sorted(expected.train) == list(range(1, STEPS + 1))
    assert found.train == pytest.approx(expected.train, rel=2**-8 * 4)
    assert found.train != expected.train
    assert found.export_difference == 0.0
