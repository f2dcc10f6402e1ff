"""One process, two under DDP and two under FSDP2: the same losses, also after going on under another number of processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from cft.training.checkpointing.checkpoints import (
    CheckpointError,
    damage_of,
    kept_checkpoints,
    newest_checkpoint,
    newest_sound_checkpoint,
    path_of_step,
    read_checkpoint,
    read_position,
)
from cft.training.distributed.launcher import own_environment
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
    reference_bytes: int


def trained(folder: Path, strategy: str, world: int, accumulate: int, *, start: Path | None = None) -> Trained:
    """8 rows a step however many processes there are."""
    folder.mkdir()
    arguments = (folder, strategy, world, accumulate, start)
    if world == 1:
        with own_environment():  # of one process under FSDP2, a group
            save_run(*arguments)
    else:
        on_two_ranks(save_run, *arguments)
    found = json.loads((folder / "result.json").read_text())
    by_step = [{int(step): loss for step, loss in found[name].items()} for name in ("train", "validation")]
    return Trained(folder, *by_step, found["export_difference"], found["reference_bytes"])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("one") / "run", "auto", 1, 4)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("fsdp") / "run", "fsdp", 2, 2)


def assert_same_losses(found: Trained, expected: Trained, *, first: int = 1) -> None:
    for one, other in ((found.train, expected.train), (found.validation, expected.validation)):
        wanted = {step: loss for step, loss in other.items() if step >= first}
        assert one == pytest.approx(wanted, rel=ROUNDING, abs=0.0)


@pytest.mark.slow
def test_fully_sharded_equals_one_process_and_exports_its_weights(one: Trained, sharded: Trained) -> None:
    assert sorted(one.train) == list(range(1, STEPS + 1))
    assert sorted(one.validation) == [10, 20]
    assert len({round(loss, 3) for loss in one.train.values()}) > STEPS / 2  # a curve, not a constant
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
    """One run, handed on: one process, two under DDP, two under FSDP2, one again, two under FSDP2."""
    links = (("ddp", 2, 2, EVERY), ("fsdp", 2, 2, 2 * EVERY), ("auto", 1, 4, 3 * EVERY), ("fsdp", 2, 2, 4 * EVERY))
    begun = one
    for strategy, world, accumulate, step in links:
        start = path_of_step(begun.folder, step=step)
        begun = trained(tmp_path / f"from {step}", strategy, world, accumulate, start=start)
        assert_same_losses(begun, one, first=step + 1)


def test_a_sharded_checkpoint_holds_what_the_single_file_does(one: Trained, sharded: Trained) -> None:
    path = path_of_step(sharded.folder, step=2 * EVERY)
    assert sorted(file.name for file in path.iterdir()) == [
        ".metadata", "SHA256SUMS", "__0_0.distcp", "__1_0.distcp", "facts.pt",
    ]  # fmt: skip
    assert damage_of(path) == ""
    found, expected = read_checkpoint(path), read_checkpoint(path_of_step(one.folder, step=2 * EVERY))
    assert found.keys() == expected.keys()
    assert read_position(path).keys() == expected.keys() - {"state_dict", "optimizer_states"} | {"optimizer_groups"}
    for whole in (lambda c: c["state_dict"], lambda c: dict(_moments(c))):
        values, wanted = whole(found), whole(expected)
        assert values.keys() == wanted.keys()
        for name, tensor in values.items():
            assert_same(tensor, wanted[name])
    groups = [c["optimizer_states"][0]["param_groups"][0]["params"] for c in (found, expected)]
    assert groups[0] == groups[1]


def _moments(checkpoint: dict[str, Any]) -> Iterator[tuple[tuple[int, str], Tensor]]:
    for number, values in checkpoint["optimizer_states"][0]["state"].items():
        yield from (((number, name), tensor) for name, tensor in values.items())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("__1_0.distcp", "part __1_0.distcp does not match"),
        ("facts.pt", "part facts.pt"),
        (".metadata", "part .metadata"),
        ("SHA256SUMS", "not written completely"),
    ],
)
def test_a_folder_that_lost_a_file_or_a_byte_is_damaged(sharded: Trained, tmp_path: Path, name: str, said: str) -> None:
    for how in ("missing", "changed") if name != "SHA256SUMS" else ("missing",):
        sound, path = (path_of_step(tmp_path / how, step=step) for step in (4, 8))
        for step in (sound, path):
            shutil.copytree(path_of_step(sharded.folder, step=EVERY), step)
        if how == "missing":
            (path / name).unlink()
        else:
            content = bytearray((path / name).read_bytes())
            content[len(content) // 2] ^= 1
            (path / name).write_bytes(content)
        assert said.split(" does")[0] in damage_of(path)
        with pytest.raises(CheckpointError, match=r"Delete it to resume from step-00000004\.ckpt"):
            newest_checkpoint(tmp_path / how)
        assert newest_sound_checkpoint(tmp_path / how, skipped=lambda *_: None) == sound


@pytest.mark.slow
def test_a_checkpoint_written_beside_training_is_the_state_of_its_step(sharded: Trained, tmp_path: Path) -> None:
    found = trained(tmp_path / "run", "fsdp+async", 2, 2)
    assert_same_losses(found, sharded)
    assert [path.name for path in kept_checkpoints(found.folder)] == [p.name for p in kept_checkpoints(sharded.folder)]
    for path in kept_checkpoints(found.folder):
        assert damage_of(path) == ""
        weights, expected = (read_checkpoint(p)["state_dict"] for p in (path, sharded.folder / path.name))
        for name, tensor in weights.items():
            assert_same(tensor, expected[name])


@pytest.mark.slow
def test_a_whole_checkpoint_of_shared_out_weights_resumes_as_shards_and_back(one: Trained, tmp_path: Path) -> None:
    begun = trained(tmp_path / "file", "fsdp+file", 2, 2)
    assert path_of_step(begun.folder, step=EVERY).is_file()
    for strategy, world, step in (("fsdp", 2, EVERY), ("fsdp+file", 2, 2 * EVERY), ("fsdp", 1, 3 * EVERY)):
        start = path_of_step(begun.folder, step=step)
        begun = trained(tmp_path / f"from {step}", strategy, world, 4 // world, start=start)
        assert_same_losses(begun, one, first=step + 1)
        assert begun.export_difference == 0.0


@pytest.mark.slow
def test_adapters_of_a_shared_out_model_resume_as_shards_and_as_a_file(tmp_path: Path) -> None:
    one = begun = trained(tmp_path / "one", "auto+lora", 1, 4)
    for strategy, world, step in (("fsdp+lora", 2, EVERY), ("fsdp+lora", 2, 2 * EVERY), ("auto+lora", 1, 3 * EVERY)):
        begun = trained(
            tmp_path / f"from {step}", strategy, world, 4 // world, start=path_of_step(begun.folder, step=step)
        )
        assert_same_losses(begun, one, first=step + 1)


@pytest.mark.slow
def test_a_reference_is_shared_out_with_the_policy_and_gives_the_same_losses(tmp_path: Path) -> None:
    alone = trained(tmp_path / "one", "auto+reference", 1, 4)
    found = trained(tmp_path / "fsdp", "fsdp+reference", 2, 2)
    assert_same_losses(found, alone)
    assert found.reference_bytes < 0.8 * alone.reference_bytes
    mixed = [trained(tmp_path / f"mixed-{s}", f"{s}+reference:bf16-mixed", 2, 2) for s in ("ddp", "fsdp")]
    assert mixed[0].reference_bytes == alone.reference_bytes / 4  # float64 -> bfloat16
    assert mixed[1].reference_bytes == found.reference_bytes / 4
    assert mixed[1].train == pytest.approx(mixed[0].train, rel=2**-8 * 4)
    assert mixed[0].train == pytest.approx(alone.train, rel=2**-8 * 4)


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
