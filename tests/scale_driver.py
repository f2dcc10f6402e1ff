"""Trains a small random Llama on uneven rows with a given strategy, from the start or from a checkpoint."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.distributed.tensor import DTensor

from cft.data.batches import GlobalOrderSampler, TokenRow, loader
from cft.losses import Distillation
from cft.models.export import export
from cft.models.load import Lora, apply_lora
from cft.references.models import Initial
from cft.training.callbacks.step_seed import SeedEachStep
from cft.training.checkpointing.keeper import CheckpointKeeper, WholeFiles
from cft.training.checkpointing.position import step_is_done
from cft.training.distributed.sharding import FullySharded, whole_model
from cft.training.module import CausalLMModule
from cft.types import TokenBatch
from tests.conftest import make_tokenizer
from tests.fakes import random_llama
from tests.objectives import sft
from tests.precision import float64_training

ROWS = 77  # 8 a step: nine full steps and one of 5, which two ranks with batches of 2 cannot share evenly
EVERY = 4
STEPS = 20
ADAMW = partial(torch.optim.AdamW, lr=1e-3)


def rows() -> list[TokenRow]:
    """Rows with 0 to 95 % eligible tokens."""
    made = []
    for i in range(ROWS):
        rng = np.random.default_rng(i)
        length, prompt_len = int(rng.integers(8, 30)), int(rng.integers(2, 6))
        weight, probe = np.zeros(length, np.float32), np.full(length, -1, np.int8)
        weight[prompt_len:] = rng.random(length - prompt_len) < 0.95 * (i % 11) / 10
        probe[prompt_len:] = weight[prompt_len:] > 0
        made.append(TokenRow(f"r{i}", rng.integers(3, 60, length), weight, probe))
    return made


class Rows(pl.LightningDataModule):
    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size, self.data = batch_size, rows()

    def train_dataloader(self) -> torch.utils.data.DataLoader[TokenBatch]:
        return self._loader(shuffle=True)

    def val_dataloader(self) -> torch.utils.data.DataLoader[TokenBatch]:
        return self._loader(shuffle=False)

    def _loader(self, *, shuffle: bool) -> torch.utils.data.DataLoader[TokenBatch]:
        assert self.trainer is not None
        sampler = GlobalOrderSampler(
            [row.counts() for row in self.data],
            batch_size=self.batch_size,
            accumulate=self.trainer.accumulate_grad_batches,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            seed=5,
            shuffle=shuffle,
        )
        return loader(self.data, sampler)


class Losses(pl.Callback):
    """Records the logged train/loss of every step and val/loss."""

    def __init__(self) -> None:
        self.train: dict[int, float] = {}
        self.validation: dict[int, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if step_is_done(trainer):
            self.train[trainer.global_step] = float(trainer.callback_metrics["train/loss"])

    def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.validation[trainer.global_step] = float(trainer.callback_metrics["val/loss"])


def run(
    folder: Path,
    *,
    strategy: str,
    world: int,
    accumulate: int,
    batch: int,
    steps: int = STEPS,
    checkpoint: Path | None = None,
    dropout: float = 0.0,
    more: tuple[pl.Callback, ...] = (),
    optimizer: Any = ADAMW,
    every: int = EVERY,
    precision: str = "32-true",
    dtype: torch.dtype = torch.float32,
    sharded: bool | None = None,
    asynchronous: bool = False,
    reference: bool = False,
    lora: bool = False,
) -> tuple[CausalLMModule, Losses]:
    losses = Losses()
    made = partial(random_llama, spread=0.1, attention_dropout=dropout, tie_word_embeddings=True)
    # As in `cft train`, only rank 0 has weights.
    with torch.device("meta") if int(os.environ.get("LOCAL_RANK", 0)) else nullcontext():
        model, taught = made(), made(seed=9)
    teacher = Initial().attach(taught.to(dtype), mixed=precision == "bf16-mixed") if reference else None
    if lora:
        apply_lora(model, lora=Lora(r=4))
    module = CausalLMModule(
        model=model.to(dtype),
        objective=sft(token_loss=Distillation(teacher_weight=0.5)) if reference else sft(),
        reference=teacher,
        optimizer=optimizer,
        schedule="cosine",
        warmup_fraction=0.1,
        probe_every_n_steps=5,
    )
    keeper = CheckpointKeeper(folder, every_n_steps=every, keep=9, sharded=sharded, asynchronous=asynchronous)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy=FullySharded(replicas=2 if strategy == "hsdp" else 1) if strategy in ("fsdp", "hsdp") else strategy,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=-1,
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        logger=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        callbacks=[SeedEachStep(3), losses, *more, keeper],
        plugins=[WholeFiles()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with float64_training() if dtype == torch.float64 else nullcontext():
        trainer.fit(module, datamodule=Rows(batch), ckpt_path=checkpoint, weights_only=True)
    return module, losses


def export_difference(module: CausalLMModule, folder: Path) -> float:
    """The largest difference between logits of the trained weights and of their reloaded export. A collective call."""
    from transformers import AutoModelForCausalLM

    model = whole_model(module.lm.model)
    if module.global_rank:
        return float("nan")
    ids = torch.arange(3, 33)[None]
    exported = AutoModelForCausalLM.from_pretrained(export(model, make_tokenizer(), folder=folder / "export"))
    with torch.no_grad():
        return float((model.eval()(input_ids=ids).logits - exported(input_ids=ids).logits).abs().max())


def local(weight: torch.Tensor) -> torch.Tensor:
    """This rank's local part of a tensor."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def save_run(folder: Path, strategy: str, world: int, accumulate: int, checkpoint: Path | None) -> None:
    """Train in float64 with 8 rows per step.

    A strategy may name another precision (fsdp:bf16-mixed) and options: +file = one file per checkpoint, +async = shards
    written during training, +reference = with a teacher, +lora = adapters. Writes checkpoints every 4 steps, and result.json
    with the losses by step and the difference between the logits of the Hugging Face export and of the trained weights.
    """
    kind, _, precision = strategy.partition(":")
    kind, _, way = kind.partition("+")
    options: dict[str, Any] = {"accumulate": accumulate, "batch": 2, "checkpoint": checkpoint, "dtype": torch.float64}
    if precision:
        options |= {"precision": precision, "dtype": torch.float32}
    if way:
        options |= {"sharded": way != "file", "asynchronous": way == "async"}
        options |= {"reference": way == "reference", "lora": way == "lora"}
    module, losses = run(folder, strategy=kind, world=world, **options)
    difference = export_difference(module, folder)
    if module.global_rank == 0:
        teacher = module.lm.reference_model
        held = sum(local(p).numel() * p.element_size() for p in teacher.parameters()) if teacher else 0
        found = {
            "reference_bytes": held,
            "train": losses.train,
            "validation": losses.validation,
            "export_difference": difference,
        }
        (folder / "result.json").write_text(json.dumps(found))
