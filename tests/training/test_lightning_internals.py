"""Private attributes of Lightning: each one does what training relies on (who names them: tests/test_private_names.py)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from cft.training.checkpointing.position import epoch_is_over, step_is_done
from cft.training.lightning_internals import (
    ScriptLauncher,
    begin_next_epoch,
    collect_shards,
    epoch_loop_state,
    limit_threads,
    require_first_start,
    set_launcher,
    set_parallel_sizes,
)


class OneWeight(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.foretold: list[bool] = []  # in the backward pass, by what training asks

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).sum()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.foretold.append(step_is_done(self.trainer))
        loss.backward(*args, **kwargs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Watch(pl.Callback):
    """What happened, what the public attributes say, and what Lightning itself says, after each micro-batch."""

    def __init__(self) -> None:
        self.moved: list[bool] = []
        self.said: list[tuple[bool, bool]] = []
        self.lightning: list[tuple[bool, bool]] = []
        self._steps = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.moved.append(trainer.global_step > self._steps)
        self._steps = trainer.global_step
        self.said.append((step_is_done(trainer), epoch_is_over(trainer)))
        loop = trainer.fit_loop.epoch_loop
        self.lightning.append((not loop._should_accumulate(), loop._num_ready_batches_reached()))


def trainer_of(tmp_path: Path, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        callbacks=[*callbacks],
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        **settings,
    )


@pytest.mark.parametrize(("batches", "accumulate"), [(4, 2), (5, 2), (3, 4), (2, 1)])
def test_public_counters_say_when_the_optimizer_moves(tmp_path: Path, batches: int, accumulate: int) -> None:
    watch, module = Watch(), OneWeight()
    trainer = trainer_of(tmp_path, watch, max_epochs=2, accumulate_grad_batches=accumulate)
    trainer.fit(module, DataLoader(torch.ones(batches, 1)))  # pyright: ignore[reportArgumentType]
    last = [i == batches - 1 for i in range(batches)]
    moves = [i % accumulate == accumulate - 1 or last[i] for i in range(batches)]
    assert watch.moved == module.foretold == 2 * moves
    assert watch.said == watch.lightning == list(zip(2 * moves, 2 * last, strict=True))


def test_a_strategy_that_accumulates_by_itself_does_not_move_at_the_end_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, trainer = Watch(), trainer_of(tmp_path, max_epochs=1, accumulate_grad_batches=2)
    monkeypatch.setattr(type(trainer.strategy), "handles_gradient_accumulation", True)
    trainer.fit_loop.epoch_loop.batch_progress.current.ready = 3
    trainer.fit_loop.max_batches = 3
    watch.on_train_batch_end(trainer, OneWeight(), None, None, 0)
    assert watch.said == watch.lightning == [(False, True)]


def test_steps_done_are_restored_and_an_epoch_begins_afresh(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_epochs=2, max_steps=100)
    loop = trainer.fit_loop.epoch_loop
    assert loop.on_save_checkpoint().keys() == epoch_loop_state(steps=0).keys()
    loop.on_load_checkpoint(epoch_loop_state(steps=7))
    assert loop.on_save_checkpoint() == epoch_loop_state(steps=7)
    trainer.fit_loop.restarting = True
    assert loop.restarting
    begin_next_epoch(trainer, steps=9)
    assert not trainer.fit_loop.restarting
    assert not loop.restarting
    assert loop.on_save_checkpoint() == epoch_loop_state(steps=9)


class FirstRank(LightningEnvironment):
    def __init__(self, rank: int = 0) -> None:
        super().__init__()
        self.rank = rank

    def local_rank(self) -> int:
        return self.rank


def test_a_strategy_starts_its_processes_with_the_launcher_that_was_set() -> None:
    strategy = DDPStrategy()
    launcher = ScriptLauncher(FirstRank(), 2, 1)
    set_launcher(strategy, launcher)
    assert strategy.launcher is launcher


def test_ddp_on_one_machine_has_the_launcher_that_is_replaced(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, devices=2, strategy="ddp")
    assert type(trainer.strategy.launcher) is ScriptLauncher


def test_processes_are_started_once_and_by_the_first_rank() -> None:
    launcher = ScriptLauncher(FirstRank(), 2, 1)
    require_first_start(launcher)
    with pytest.raises(RuntimeError, match="local_rank > 0"):
        require_first_start(ScriptLauncher(FirstRank(1), 2, 1))
    launcher.procs = [object()]  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="only create subprocesses once"):
        require_first_start(launcher)


@pytest.fixture
def _threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_processes_share_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    limit_threads(num_processes=cores)
    assert torch.get_num_threads() == 1
    assert os.environ["OMP_NUM_THREADS"] == "1"


class _Stop(Exception):
    pass


def test_the_mesh_has_the_sizes_that_were_set(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = ModelParallelStrategy()
    set_parallel_sizes(strategy, data=6, tensor=1)
    found = {}

    def mesh(data_parallel_size: int, tensor_parallel_size: int, *rest: Any) -> None:
        found.update(data=data_parallel_size, tensor=tensor_parallel_size)
        raise _Stop

    monkeypatch.setattr("lightning.pytorch.strategies.model_parallel._setup_device_mesh", mesh)
    monkeypatch.setattr(strategy, "_setup_distributed", lambda: None)
    monkeypatch.setattr("lightning.pytorch.strategies.parallel.ParallelStrategy.setup_environment", lambda self: None)
    monkeypatch.setattr(ModelParallelStrategy, "root_device", torch.device("cpu"))
    with pytest.raises(_Stop):
        strategy.setup_environment()
    assert found == {"data": 6, "tensor": 1}


@pytest.mark.parametrize("own", [True, False])
def test_a_state_dict_is_of_own_shards_or_of_all_weights(monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    strategy = ModelParallelStrategy(save_distributed_checkpoint=not own)
    strategy.model = OneWeight()
    found = []

    def state_dict(model: torch.nn.Module, *, options: Any) -> dict[str, Any]:
        found.append(options.full_state_dict)
        return {}

    monkeypatch.setattr("torch.distributed.checkpoint.state_dict.get_model_state_dict", state_dict)
    collect_shards(strategy, own=own)
    strategy.lightning_module_state_dict()
    assert found == [not own]
