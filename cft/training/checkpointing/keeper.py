"""Writes checkpoints for resuming: every n optimizer steps, before each validation and at the end of each epoch.

They are written between two steps, atomically; only the newest few are kept.
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
    """Writes checkpoints atomically, without Lightning's additional copy of the whole checkpoint in memory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        def write(temporary: Path) -> None:
            with temporary.open(
                "wb"
            ) as file:  # given a path, torch writes in C++ and does not report why writing failed
                torch.save(checkpoint, file)

        if Path(path).is_dir():  # from an earlier part of the run, whose checkpoints were sharded
            remove(Path(path))
        write_atomically(Path(path), write)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read_folder(Path(path)) if Path(path).is_dir() else super().load_checkpoint(path, *args, **kwargs)


class CheckpointKeeper(Checkpoint):
    """Writes checkpoints and removes old ones.

    The state after a step is written when the next step begins, since Lightning logs the step only then.

    Args:
        folder: the folder of checkpoints.
        every_n_steps: optimizer steps between two checkpoints; 0 = only at validations and at the ends of epochs.
        keep: number of checkpoints to keep.
        sharded: whether every rank writes its own part; None = if the weights are sharded.
        asynchronous: whether training continues during writing; the newest checkpoint is then complete a little later.
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
        self._written = 0  # optimizer steps of the newest checkpoint on disk, or of the start
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
        self._written = -1  # the checkpoint on disk is from before the validation
        whole = epoch_is_over(trainer)  # max_steps may end the epoch early
        self.save(trainer, next="epoch" if whole else "step")

    def save(self, trainer: pl.Trainer, *, next: Next) -> None:
        """Write the state between two optimizer steps, unless it is already on disk. Collective."""
        if trainer.global_step == self._written:
            return
        self._written, self._next = trainer.global_step, next
        for logger in trainer.loggers:
            logger.save()  # a resumed run does not log the earlier steps again
        trainer.save_checkpoint(path_of_step(self.folder, step=trainer.global_step))
        self._remove_old(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.finish(trainer)

    def finish(self, trainer: pl.Trainer) -> None:
        """Wait until the newest checkpoint is on disk. Collective."""
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
            # All steps are done but not the validation after the last one, which Lightning would skip.
            self._max_steps, loop.max_steps = loop.max_steps, self._resumed.steps + 1


class BestWeights(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which also keeps the best score when the run folder is moved before resuming."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {key: here(value) for key, value in state_dict.items() if key.endswith("_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


def rows_per_step(trainer: pl.Trainer) -> int:
    """Number of rows of an optimizer step, over all micro-batches and ranks."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
