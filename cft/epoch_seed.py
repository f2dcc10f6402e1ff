"""Random numbers of training (dropout) as a function of seed, epoch and rank alone.

A run resumed after its n-th epoch then draws what an uninterrupted one draws, and ends in the same weights.
"""

from __future__ import annotations

import hashlib

import lightning.pytorch as pl
import torch


class SeedEachEpoch(pl.Callback):
    """Seeds torch's generators at the start of every training epoch."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.manual_seed(epoch_seed(self.seed, epoch=trainer.current_epoch, rank=trainer.global_rank))


def epoch_seed(seed: int, *, epoch: int, rank: int) -> int:
    digest = hashlib.blake2b(f"epoch\x1f{seed}\x1f{epoch}\x1f{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # torch takes signed 64-bit seeds
