"""Lightning callbacks that a config names: which checkpoints are kept, and the learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cft.ranges import AtLeastOne, Count, in_range

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from cft.training.checkpointing.keeper import CheckpointKeeper


def best_checkpoint(folder: Path, *, monitor: str, mode: Literal["min", "max"]) -> Callback:
    """Weights of the best epoch by a validation metric, as <run>/checkpoints/best.ckpt.

    Args:
        folder: <run>/checkpoints, from the program.
        monitor: val/accuracy, val/loss or another metric that validation logs.
        mode: "max" for an accuracy, "min" for a loss.
    """
    from cft.training.checkpointing.keeper import BestWeights

    return BestWeights(
        dirpath=folder,
        filename="best",
        monitor=monitor,
        mode=mode,
        save_top_k=1,
        save_weights_only=True,
        enable_version_counter=False,
    )


@in_range
def last_checkpoint(folder: Path, *, every_n_steps: Count, keep: AtLeastOne) -> CheckpointKeeper:
    """Everything needed to resume, as <run>/checkpoints/step-<optimizer steps>.ckpt.

    Args:
        folder: <run>/checkpoints, from the program.
        every_n_steps: optimizer steps between two, at least 0; 0 = at validations and the ends of epochs only.
        keep: files that stay, at least 1; the second serves where the newest is damaged.
    """
    from cft.training.checkpointing.keeper import CheckpointKeeper

    return CheckpointKeeper(folder, every_n_steps=every_n_steps, keep=keep)


def learning_rate_monitor(folder: Path) -> Callback:
    """Logs the learning rate of every step."""
    from lightning.pytorch.callbacks import LearningRateMonitor

    return LearningRateMonitor(logging_interval="step")
