"""Writes the checkpoints that a training resumes from: every so many optimizer steps, before each validation and at the
end of each epoch, always between two steps, whole or not at all; the newest few stay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cft.files import write_atomically
from cft.training.checkpointing.checkpoints import kept_checkpoints, path_of_step, remove
from cft.training.checkpointing.position import (
    KEY,
    Next,
    Position,
    correct_counters,
    current_position,
    epoch_is_over,
    position_of,
    write_counters,
)
from cft.training.checkpointing.sharded import WritesShards, read_folder


class WholeFiles(TorchCheckpointIO):
    """Checkpoints whole or absent. Lightning's own way holds all of one in memory a second time before it is written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # by its path torch would write past Python, and say not why it failed
                torch.save(checkpoint, file)

        if Path(path).is_dir():  # of another part of the run, whose checkpoints were sharded
            remove(Path(path))
        write_atomically(Path(path), write)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read_folder(Path(path)) if Path(path).is_dir() else super().load_checkpoint(path, *args, **kwargs)


class CheckpointKeeper(Checkpoint):
    """every_n_steps: 0 = at validations and the ends of epochs only. keep: how many stay. sharded: None = where the weights
    are. asynchronous: written while training continues; the newest is whole a little later.

    The state after a step is written when the next one begins: only then has Lightning logged the step.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_n_steps: int,
        keep: int,
        sharded: bool | None = None,
        asynchronous: bool = False,
    ) -> None:
        self.folder = folder
        self.every_n_steps, self.keep = every_n_steps, keep
        self.sharded, self.asynchronous = sharded, asynchronous
        self._next: Next = "step"
        self._resumed: Position | None = None
        self._written = 0  # optimizer steps done in what is on disk, or at the start
        self._max_steps = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, WritesShards):
            sharded = self.sharded is not False
            trainer.strategy.write_checkpoints(sharded=sharded, asynchronous=self.asynchronous and sharded)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._written = trainer.global_step
        if self._resumed is None:
            return
        position, self._resumed = self._resumed, None
        correct_counters(trainer, position)
        if position.next != "epoch":
            sampler: Any = trainer.train_dataloader.sampler  # type: ignore[union-attr]
            sampler.start_at(epoch=position.epoch, step=position.epoch_steps)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        between = batch_idx % trainer.accumulate_grad_batches == 0
        if between and self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0:
            self.save(trainer, next="step")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._max_steps > 0:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, -1
        if not trainer.sanity_checking:
            self.save(trainer, next="validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._written = -1  # what is on disk has its validation still to come
        whole = epoch_is_over(trainer)  # max_steps may end it before
        self.save(trainer, next="epoch" if whole else "step")

    def save(self, trainer: pl.Trainer, *, next: Next) -> None:
        """Write the state between two optimizer steps, unless it is on disk. All ranks call it together."""
        if trainer.global_step == self._written:
            return
        self._written, self._next = trainer.global_step, next
        for logger in trainer.loggers:
            logger.save()  # what a resumed run will not log again
        trainer.save_checkpoint(path_of_step(self.folder, step=trainer.global_step))
        self._remove_old(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.finish(trainer)

    def finish(self, trainer: pl.Trainer) -> None:
        """Wait until the newest checkpoint is on disk. All ranks call it together."""
        if isinstance(trainer.strategy, WritesShards):
            trainer.strategy.finish_checkpoint()
        self._remove_old(trainer)

    def _remove_old(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            for old in kept_checkpoints(self.folder)[self.keep :]:
                remove(old)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        rows = rows_per_step(trainer)
        checkpoint[KEY] = current_position(trainer, rows_per_step=rows, next=self._next).as_dict()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._resumed = position_of(checkpoint)
        write_counters(checkpoint, self._resumed, accumulate=trainer.accumulate_grad_batches)
        loop = trainer.fit_loop.epoch_loop
        if self._resumed.next == "validation" and 0 < loop.max_steps <= self._resumed.steps:
            # All steps are done and the validation after the last one is not: Lightning would leave it out.
            self._max_steps, loop.max_steps = loop.max_steps, self._resumed.steps + 1


class BestWeights(ModelCheckpoint):
    """Lightning's, but a run folder may be moved between two parts of a run: Lightning would forget the best score."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {key: here(value) for key, value in state_dict.items() if key.endswith("_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


def rows_per_step(trainer: pl.Trainer) -> int:
    """Rows of an optimizer step, over all micro-batches and ranks."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
