"""Lightning callbacks: which checkpoint is kept, and greedy accuracy on fresh problems after each epoch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback


def best_checkpoint(folder: Path, *, monitor: str, mode: Literal["min", "max"]) -> Callback:
    """Weights of the best epoch by a validation metric, as <run>/checkpoints/best.ckpt."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    return ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=monitor,
        mode=mode,
        save_top_k=1,
        save_weights_only=True,
        enable_version_counter=False,
    )


def last_checkpoint(folder: Path) -> Callback:
    """Everything needed to go on after the last finished epoch, as <run>/checkpoints/last.ckpt."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    return ModelCheckpoint(
        dirpath=folder,
        filename="last",
        monitor=None,
        save_top_k=1,
        every_n_epochs=1,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )


def learning_rate_monitor(folder: Path) -> Callback:
    """Logs the learning rate of every step."""
    from lightning.pytorch.callbacks import LearningRateMonitor

    return LearningRateMonitor(logging_interval="step")
