"""Random numbers of training (dropout) as a function of seed, epoch, batch and rank alone.

A run resumed at any step then draws what an uninterrupted one draws, and ends in the same weights. Seeding each epoch
would not do: a run resumed within it would draw its first numbers again.
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
