"""Makes the random numbers of training (dropout) a function of only seed, epoch, batch and rank.

A run resumed at any step then draws the same numbers as an uninterrupted run, and ends with the same weights. Seeding once per
epoch would not suffice: a run resumed within an epoch would draw the epoch's first numbers again.
"""

from __future__ import annotations

import hashlib
from typing import Any

import lightning.pytorch as pl
import torch


class SeedEachStep(pl.Callback):
    """Seeds torch's generators before every micro-batch."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        torch.manual_seed(step_seed(self.seed, epoch=trainer.current_epoch, batch=batch_idx, rank=trainer.global_rank))


def step_seed(seed: int, *, epoch: int, batch: int, rank: int) -> int:
    digest = hashlib.blake2b(f"step\x1f{seed}\x1f{epoch}\x1f{batch}\x1f{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # torch takes signed 64-bit seeds
