"""Trains a small random Llama on uneven rows and records the gradients of every optimizer step before clipping."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from cft.data.batches import GlobalOrderSampler, TokenRow, loader
from cft.losses.normalizer import Normalizer
from cft.training.module import CausalLMModule
from cft.types import TokenBatch
from tests.fakes import random_llama
from tests.objectives import sft
from tests.precision import float64_training

ROWS = 13  # windows of 8: one full, one short of 5, which two ranks with batches of 2 cannot share evenly
EPOCHS = 2
SGD = partial(torch.optim.SGD, lr=0.05)


def rows(*, empty: tuple[int, ...] = (3,)) -> list[TokenRow]:
    """Rows with 5 % to 95 % eligible tokens; those in `empty` have none."""
    made = []
    for i in range(ROWS):
        rng = np.random.default_rng(i)
        length, prompt_len = int(rng.integers(8, 30)), int(rng.integers(2, 6))
        weight, probe = np.zeros(length, np.float32), np.full(length, -1, np.int8)
        weight[prompt_len:] = 0.0 if i in empty else rng.random(length - prompt_len) < 0.05 + 0.9 * i / ROWS
        probe[prompt_len:] = weight[prompt_len:] > 0
        made.append(TokenRow(f"r{i}", rng.integers(3, 60, length), weight, probe))
    return made


class Rows(pl.LightningDataModule):
    def __init__(self, batch_size: int, data: list[TokenRow]) -> None:
        super().__init__()
        self.batch_size, self.data = batch_size, data

    def train_dataloader(self) -> torch.utils.data.DataLoader[TokenBatch]:
        assert self.trainer is not None
        sampler = GlobalOrderSampler(
            [row.counts() for row in self.data],
            batch_size=self.batch_size,
            accumulate=self.trainer.accumulate_grad_batches,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            seed=5,
            shuffle=True,
        )
        return loader(self.data, sampler)


class Recorder(CausalLMModule):
    """Records the gradients before clipping."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.recorded: list[torch.Tensor | None] = []

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        grads = [p.grad for p in self.parameters()]
        whole = None if any(g is None for g in grads) else torch.cat([g.flatten() for g in grads if g is not None])
        self.recorded.append(None if whole is None else whole.clone())


def run(
    *,
    world: int,
    accumulate: int,
    batch: int,
    normalizer: Normalizer = "critical",
    data: list[TokenRow] | None = None,
    optimizer: Any = SGD,
    module_class: type[Recorder] = Recorder,
    logger: Any = False,
    dtype: torch.dtype = torch.float64,
    groups: Any = None,
    inputs: Any = None,
    schedule: Any = "constant",
    callbacks: Any = None,
    resume: Path | None = None,
    epochs: int = EPOCHS,
) -> tuple[list[torch.Tensor | None], Recorder, pl.Trainer]:
    """Train. dtype: float64 by default, in which splits of a step into micro-batches and ranks differ by 1e-13."""
    module = module_class(
        model=random_llama(spread=0.1).to(dtype),
        objective=sft(normalizer=normalizer),
        optimizer=optimizer,
        groups=groups,
        inputs=inputs,
        schedule=schedule,
        warmup_fraction=0.0,
        probe_every_n_steps=2,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        max_epochs=epochs,
        callbacks=callbacks,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        logger=logger,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with float64_training() if dtype == torch.float64 else nullcontext():
        data_module = Rows(batch, rows() if data is None else data)
        trainer.fit(module, datamodule=data_module, ckpt_path=resume, weights_only=True)
    return module.recorded, module, trainer


def save_gradients(out: Path, world: int, accumulate: int, batch: int) -> None:
    recorded, _, trainer = run(world=world, accumulate=accumulate, batch=batch)
    if trainer.is_global_zero:
        torch.save(recorded, out)


def save_weights(out: Path, world: int, accumulate: int, batch: int, groups: Any, inputs: Any = None) -> None:
    _, module, trainer = run(world=world, accumulate=accumulate, batch=batch, groups=groups, inputs=inputs)
    if trainer.is_global_zero:
        torch.save(module.lm.model.state_dict(), out)
