"""Lightning callbacks named in configs: checkpoints and the learning-rate monitor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cft.ranges import AtLeastOne, Count, in_range

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from cft.training.checkpointing.keeper import CheckpointKeeper


def best_checkpoint(folder: Path, *, monitor: str, mode: Literal["min", "max"]) -> Callback:
    """Saves the weights of the best epoch by a validation metric, as <run>/checkpoints/best.ckpt.

    Args:
        folder: <run>/checkpoints, set by the program.
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
def last_checkpoint(
    folder: Path,
    *,
    every_n_steps: Count,
    keep: AtLeastOne,
    sharded: Literal["auto"] | bool = "auto",
    asynchronous: bool = False,
) -> CheckpointKeeper:
    """Saves everything needed to resume, as <run>/checkpoints/step-<optimizer steps>.ckpt.

    Args:
        folder: <run>/checkpoints, set by the program.
        every_n_steps: optimizer steps between two checkpoints, at least 0; 0 = only at validations and at the ends of epochs.
        keep: number of checkpoints to keep, at least 1; with 2, an older one is available if the newest is damaged.
        sharded: whether every process writes its own part, into a folder; "auto" = only under trainer=fsdp.
        asynchronous: whether sharded checkpoints are written while training continues, from a copy in host memory.
    """
    from cft.training.checkpointing.keeper import CheckpointKeeper

    return CheckpointKeeper(
        folder,
        every_n_steps=every_n_steps,
        keep=keep,
        sharded=None if sharded == "auto" else sharded,
        asynchronous=asynchronous,
    )


def learning_rate_monitor(folder: Path) -> Callback:
    """Logs the learning rate of every step."""
    from lightning.pytorch.callbacks import LearningRateMonitor

    return LearningRateMonitor(logging_interval="step")
