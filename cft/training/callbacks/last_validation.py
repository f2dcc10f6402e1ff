"""Validates after the last optimizer step, even within an epoch, since the exported weights are chosen among validated states.

Lightning validates at the ends of epochs (or according to trainer.check_val_every_n_epoch and val_check_interval), and
trainer.max_steps may end training earlier. The steps after the last validation would then contribute to no result. Settings
that disable validation, or schedule it by time, are refused in `cft/config/library_rules.py`.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from cft.training.checkpointing.position import is_last_step, position_of, step_is_done


class LastValidation(pl.Callback):
    """Makes Lightning validate after the last step, and on resuming a run that stopped during a validation."""

    def __init__(self) -> None:
        self._before: tuple[Any, Any] | None = None
        self._stopped_within_one = False

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._stopped_within_one = position_of(checkpoint).next == "validation"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._stopped_within_one:
            self._validate_now(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if step_is_done(trainer) and is_last_step(trainer):
            self._validate_now(trainer)

    def _validate_now(self, trainer: pl.Trainer) -> None:
        """Validate once after the current micro-batch, then restore the previous settings."""
        if self._before is None:
            self._before = trainer.check_val_every_n_epoch, trainer.val_check_batch
            trainer.check_val_every_n_epoch = trainer.val_check_batch = 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._before is not None:
            (trainer.check_val_every_n_epoch, trainer.val_check_batch), self._before = self._before, None
