"""The progress bar of a training run, and its performance metrics: tokens/s, MFU, memory."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch

from cft.console import Bar
from cft.models.flops import Arithmetic, matmul_rate
from cft.training.checkpointing.position import step_is_done
from cft.training.layout import computed_positions

SHOWN = (("loss", "train/loss"), ("val loss", "val/loss"), ("val accuracy", "val/accuracy"))
GB = 1e9


class ShowProgress(pl.Callback):
    """Shows a progress bar of micro-batches, and logs perf/ metrics of every optimizer step.

    perf/tokens_per_s            tokens that pass through the model, over all ranks, without padding and without the
                                 tokens after a row's last predicted token (`cft/training/layout.py`)
    perf/eligible_tokens_per_s   tokens with loss, over all ranks
    perf/mfu                     model FLOPs utilization of this rank's device, 0-1
    perf/memory_gb               peak memory
    """

    def __init__(self, bar: Bar, arithmetic: Arithmetic) -> None:
        self.bar = bar
        self.arithmetic = arithmetic
        self._rate = float("inf")
        self._lengths: list[int] = []
        self._projected = self._eligible = self._guessed = 0
        self._begun = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs = max(trainer.max_epochs or 1, 1)
        batches = int(trainer.num_training_batches) * epochs
        if trainer.max_steps > 0:
            batches = min(batches, trainer.max_steps * trainer.accumulate_grad_batches)
        self.bar.begin(trainer.fit_loop.total_batch_idx + 1, total=batches)
        self._rate = matmul_rate(trainer.strategy.root_device, mixed=trainer.precision == "bf16-mixed")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._lengths:
            self._begun = time.perf_counter()
        tokens = pl_module.lm.objective.tokens(batch)  # type: ignore[union-attr]
        self._lengths += computed_positions(tokens).tolist()
        self._projected += len(tokens.row_N)
        self._eligible += int(tokens.on("eligible").sum())
        if pl_module.lm.inputs.mixes:  # type: ignore[union-attr]
            self._guessed += len(pl_module.lm.guessed(batch, tokens).row_N)  # type: ignore[union-attr, operator]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if step_is_done(trainer):
            values = self._of_step(trainer)
            pl_module.log_dict(values)
            known = trainer.callback_metrics
            facts = [f"{name} {float(known[key]):.3f}" for name, key in SHOWN if key in known]
            facts += [
                f"{values['perf/tokens_per_s']:,.0f} tokens/s ({values['perf/eligible_tokens_per_s']:,.0f} with loss)",
                f"MFU {values['perf/mfu']:.0%}",
                f"{values['perf/memory_gb']:.1f} GB",
            ]
            self.bar.advance(facts=f"epoch {trainer.current_epoch + 1} {' '.join(facts)}")
        else:
            self.bar.advance()

    def _of_step(self, trainer: pl.Trainer) -> dict[str, float]:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = max(1e-9, time.perf_counter() - self._begun)
        done = self.arithmetic.of_rows(self._lengths, projected=self._projected)
        if self._guessed:  # mixed inputs need an additional forward pass
            done += self.arithmetic.of_forward(self._lengths, projected=self._guessed)
        values = {
            "perf/tokens_per_s": sum(self._lengths) * trainer.world_size / seconds,
            "perf/eligible_tokens_per_s": self._eligible * trainer.world_size / seconds,
            "perf/mfu": done / seconds / self._rate,
            "perf/memory_gb": peak_memory(device) / GB,
        }
        self._lengths, self._projected, self._eligible, self._guessed = [], 0, 0, 0
        return values


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the tensors on a GPU, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
