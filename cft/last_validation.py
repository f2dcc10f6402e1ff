"""The last optimizer step is validated, wherever in an epoch it falls: what is exported is chosen among validated states.

Lightning validates at the ends of epochs (or as trainer.check_val_every_n_epoch and val_check_interval say), and
trainer.max_steps may end a training before. Then steps would be paid for that no result is of.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from cft.config import ConfigError
from cft.position import is_last_step, position_of, step_is_done


def require_validation(trainer: pl.Trainer) -> None:
    """Raises ConfigError under settings of the Trainer that leave validation out, or to the clock."""
    if trainer.limit_val_batches == 0:
        raise ConfigError(
            "trainer.limit_val_batches: 0 leaves out validation, which chooses the weights that are exported; leave the key "
            "out (data.validation_fraction and validation.problems say how much is validated)"
        )
    if not isinstance(trainer.val_check_interval, int | float):
        raise ConfigError(
            f"trainer.val_check_interval: expected a number, found {trainer.val_check_interval!r}; by the clock a repetition "
            "would be validated elsewhere"
        )


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
