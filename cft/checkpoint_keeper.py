"""Writes the checkpoints that a training goes on from: every so many optimizer steps, before each validation and at the
end of each epoch, always between two steps, whole or not at all; the newest few stay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cft.checkpoints import kept_checkpoints, path_of_step
from cft.files import write_atomically
from cft.position import KEY, Position, correct_counters, current_position, position_of, step_is_done, write_counters


class WholeFiles(TorchCheckpointIO):
    """Checkpoints whole or absent. Lightning's own way holds all of one in memory a second time before it is written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))


class CheckpointKeeper(Checkpoint):
    """every_n_steps: 0 = at validations and the ends of epochs only. keep: how many files stay."""

    def __init__(self, folder: Path, *, every_n_steps: int, keep: int) -> None:
        self.folder = folder
        self.every_n_steps, self.keep = every_n_steps, keep
        self._resumed: Position | None = None
        self._max_steps = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._resumed is None:
            return
        position, self._resumed = self._resumed, None
        correct_counters(trainer, position)
        if position.next != "epoch":
            sampler: Any = trainer.train_dataloader.sampler  # type: ignore[union-attr]
            sampler.start_at(epoch=position.epoch, step=position.epoch_steps)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not step_is_done(trainer):
            return
        due = self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0
        if due or self._position(trainer).next == "validation":
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Write the state between two optimizer steps, on all ranks together."""
        trainer.save_checkpoint(path_of_step(self.folder, step=trainer.global_step))
        if trainer.is_global_zero:
            for old in kept_checkpoints(self.folder)[self.keep :]:
                old.unlink(missing_ok=True)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[KEY] = self._position(trainer).as_dict()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._resumed = position_of(checkpoint)
        write_counters(checkpoint, self._resumed, accumulate=trainer.accumulate_grad_batches)
        loop = trainer.fit_loop.epoch_loop
        if self._resumed.next == "validation" and 0 < loop.max_steps <= self._resumed.steps:
            # All steps are done and the validation after the last one is not: Lightning would leave it out.
            self._max_steps, loop.max_steps = loop.max_steps, self._resumed.steps + 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._max_steps > 0:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, -1

    def _position(self, trainer: pl.Trainer) -> Position:
        return current_position(trainer, rows_per_step=rows_per_step(trainer))


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
