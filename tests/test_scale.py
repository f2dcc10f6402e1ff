"""One process, two under DDP and two under FSDP2: the same losses, also after going on under another number of processes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cft.checkpoints import path_of_step
from tests import scale_driver
from tests.scale_driver import EVERY, STEPS


@dataclass(frozen=True, slots=True)
class Trained:
    """What tests/scale_driver.py left behind."""

    folder: Path
    train: dict[int, float]
    validation: dict[int, float]
    export_difference: float


def trained(folder: Path, strategy: str, world: int, accumulate: int, *, start: Path | None = None) -> Trained:
    """In processes of its own; 8 rows a step however many there are."""
    folder.mkdir()
    arguments = [str(folder), strategy, str(world), str(accumulate), "2", str(STEPS), *([str(start)] if start else [])]
    command = [sys.executable, str(Path(scale_driver.__file__)), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((folder / "result.json").read_text())
    by_step = [{int(step): loss for step, loss in found[name].items()} for name in ("train", "validation")]
    return Trained(folder, *by_step, found["export_difference"])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("one") / "run", "auto", 1, 4)


def assert_same_losses(found: Trained, expected: Trained, *, first: int = 1) -> None:
    # 1e-5: sums of float32 in another order, and AdamW enlarges differences of small gradients.
    for one, other in ((found.train, expected.train), (found.validation, expected.validation)):
        wanted = {step: loss for step, loss in other.items() if step >= first}
        assert one == pytest.approx(wanted, rel=1e-5)


def test_fully_sharded_equals_one_process_and_exports_its_weights(one: Trained, tmp_path: Path) -> None:
    assert sorted(one.train) == list(range(1, STEPS + 1))
    assert sorted(one.validation) == [10, 20]
    assert len({round(loss, 3) for loss in one.train.values()}) > STEPS / 2  # a curve, not a constant
    sharded = trained(tmp_path / "fsdp", "fsdp", 2, 2)
    assert_same_losses(sharded, one)
    assert sharded.export_difference == 0.0
    assert one.export_difference == 0.0


@pytest.mark.slow
def test_ddp_equals_one_process(one: Trained, tmp_path: Path) -> None:
    assert_same_losses(trained(tmp_path / "ddp", "ddp", 2, 2), one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (("auto", 1, 4), ("fsdp", 2, 2)),
        (("ddp", 2, 2), ("auto", 1, 4)),
        (("fsdp", 2, 2), ("ddp", 2, 2)),
        (("fsdp", 2, 2), ("auto", 1, 4)),
    ],
)
def test_another_number_of_processes_goes_on_with_the_same_losses(
    one: Trained, tmp_path: Path, first: tuple[str, int, int], then: tuple[str, int, int]
) -> None:
    begun = trained(tmp_path / "begun", *first)
    for step in (EVERY, 2 * EVERY):  # within the first epoch, and within the second
        start = path_of_step(begun.folder, step=step)
        resumed = trained(tmp_path / f"from {step}", *then, start=start)
        assert_same_losses(resumed, one, first=step + 1)
