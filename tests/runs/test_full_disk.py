"""What the system refuses to write, for real: a limit on the size of files stands in for a full disk."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cft.annotation.shards import Shard, place
from cft.files import WriteError, exclusive
from cft.models.export import export
from cft.training.checkpointing.keeper import WholeFiles
from tests.conftest import make_llama, make_tokenizer


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save(folder: Path) -> None:
    state = {"state_dict": {name: torch.ones(100, 100) for name in "abc"}, "epoch": 1}
    WholeFiles().save_checkpoint(state, folder / "step=1.ckpt")


def hold(folder: Path) -> None:
    with exclusive(folder):
        pass


def hold_shard(folder: Path) -> None:
    with place(folder, Shard(0, 2)):
        pass


def export_model(folder: Path) -> None:
    export(make_llama(), make_tokenizer(), folder=folder / "export")


@pytest.mark.parametrize(
    ("write", "sizes"),
    [(save, (100, 50_000, 120_000)), (hold, (0,)), (hold_shard, (0,)), (export_model, (100, 1500, 10_000))],
)
def test_what_cannot_be_written_says_why_and_leaves_nothing(
    tmp_path: Path, write: Callable[[Path], None], sizes: tuple[int, ...]
) -> None:
    for size in sizes:
        with files_of_at_most(size), pytest.raises(WriteError, match=r"File too large\)\. Raise the limit .*ulimit -f"):
            write(tmp_path)
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".lock")] == []
    write(tmp_path)  # with room it works


def test_a_checkpoint_is_what_was_saved(tmp_path: Path) -> None:
    save(tmp_path)
    state = torch.load(tmp_path / "step=1.ckpt", weights_only=True)
    assert state["epoch"] == 1
    assert torch.equal(state["state_dict"]["c"], torch.ones(100, 100))


def test_an_error_that_is_not_the_system_s_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="pickle"):
        WholeFiles().save_checkpoint({"generator": (n for n in range(3))}, tmp_path / "step=1.ckpt")
    assert list(tmp_path.iterdir()) == []
