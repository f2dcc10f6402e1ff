"""The last optimizer step is validated, wherever in an epoch it falls: what is exported is chosen among validated states.

Lightning validates at the ends of epochs (or as trainer.check_val_every_n_epoch and val_check_interval say), and
trainer.max_steps may end a training before. Then steps would be paid for that no result is of. Settings that leave
validation out, or to the clock, are refused in `cft/config/library_rules.py`.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from cft.training.checkpointing.position import is_last_step, position_of, step_is_done


class LastValidation(pl.Callback):
    """Has Lightning validate after the last step, or where a resumed training stopped within a validation."""

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
        """After the micro-batch under way; from then on as before."""
        if self._before is None:
            self._before = trainer.check_val_every_n_epoch, trainer.val_check_batch
            trainer.check_val_every_n_epoch = trainer.val_check_batch = 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._before is not None:
            (trainer.check_val_every_n_epoch, trainer.val_check_batch), self._before = self._before, None
