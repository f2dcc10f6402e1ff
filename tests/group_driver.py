"""Trains a small random Llama with a loss over groups of rows, from the start or from a checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from cft.data.groups import groups_of
from cft.training.callbacks.step_seed import SeedEachStep
from cft.training.checkpointing.keeper import CheckpointKeeper, WholeFiles
from cft.types import TokenBatch
from tests.fakes import random_llama
from tests.gradient_driver import Recorder
from tests.group_rows import group_rows, loader_of
from tests.methods import VOCABULARY, objective
from tests.precision import float64_training

EPOCHS = 3
SIZES = ((1, 3), (2, 2), (1, 1), (3, 4), (1, 2), (2, 5), (1, 4))  # two steps of four groups, the second one short


class Groups(pl.LightningDataModule):
    def __init__(self, batch_size: int, *, rejected: int) -> None:
        super().__init__()
        self.batch_size, self.rejected = batch_size, rejected
        self.rows = group_rows(SIZES)

    def train_dataloader(self) -> torch.utils.data.DataLoader[TokenBatch]:
        assert self.trainer is not None
        return loader_of(
            self.rows,
            rejected=self.rejected,
            batch_size=self.batch_size,
            accumulate=self.trainer.accumulate_grad_batches,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )


def run(
    folder: Path,
    *,
    method: str = "loss=discriminative",
    world: int = 1,
    accumulate: int,
    batch: int,
    checkpoint: Path | None = None,
    more: tuple[pl.Callback, ...] = (),
    dropout: float = 0.0,
) -> Recorder:
    """Train with four groups per step (accumulate * batch * world)."""
    built = objective(method)
    data = Groups(batch, rejected=built.rejected)
    module = Recorder(
        model=random_llama(vocab=VOCABULARY, spread=0.1, attention_dropout=dropout).double(),
        objective=built,
        optimizer=partial(torch.optim.SGD, lr=0.05),
        schedule="constant",
        warmup_fraction=0.0,
        probe_every_n_steps=0,
        examples=len(groups_of(data.rows)),
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        callbacks=[SeedEachStep(0), CheckpointKeeper(folder, every_n_steps=1, keep=9), *more],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.strategy.checkpoint_io = WholeFiles()
    with float64_training():
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return module


def result(module: Recorder) -> dict[str, Any]:
    state = module.lm.objective.state
    assert state is not None
    return {"gradients": module.recorded, "weights": module.state_dict(), "state": state.saved()}


def save_result(out: Path, world: int, accumulate: int, batch: int) -> None:
    module = run(out.parent / f"{out.stem}-checkpoints", world=world, accumulate=accumulate, batch=batch)
    torch.save(result(module), out.with_name(f"{out.stem}-{module.global_rank}.pt"))
