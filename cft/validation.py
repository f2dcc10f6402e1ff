"""Lightning callbacks of a training run: greedy accuracy on fresh problems after each epoch, and the progress bar.

The annotated rows are solved problems, on which the base model is right by construction; only problems it has not been
selected on can choose an epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch

from cft.evaluation import GREEDY_SAMPLE, SampleRequest, Solver
from cft.progress import Bar
from cft.types import Outcome, Problem


class GreedyAccuracy(pl.Callback):
    """Logs val/accuracy, 0-1. Problems are dealt out to the ranks by position, and counts are summed."""

    def __init__(self, problems: Sequence[Problem], make_solver: Callable[[], Solver], *, max_new_tokens: int) -> None:
        self.problems = problems
        self.make_solver = make_solver
        self.request = SampleRequest(0, 0.0, 1.0, 0, max_new_tokens)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        share = self.problems[trainer.global_rank :: trainer.world_size]
        samples = self.make_solver().solve(share, request=self.request, title="Validating") if share else []
        right = sum(s.outcome == Outcome.RIGHT for s in samples if s.sample == GREEDY_SAMPLE)
        counts = torch.tensor([right, len(share)], dtype=torch.float64, device=pl_module.device)
        total_right, total = trainer.strategy.reduce(counts, reduce_op="sum").tolist()  # type: ignore[union-attr]
        pl_module.log("val/accuracy", total_right / total, prog_bar=True)


class ShowProgress(pl.Callback):
    """Drives a bar of micro-batches with the latest loss, validation accuracy and tokens/s."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self._tokens = 0
        self._started = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs = max(trainer.max_epochs or 1, 1)
        batches = int(trainer.num_training_batches) * epochs
        if trainer.max_steps > 0:
            batches = min(batches, trainer.max_steps * trainer.accumulate_grad_batches)
        self.bar.advance(trainer.fit_loop.total_batch_idx + 1, total=batches)
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._tokens += int(batch.lengths_B.sum())
        metrics = trainer.callback_metrics
        shown = [f"{name} {float(metrics[key]):.3f}" for name, key in SHOWN if key in metrics]
        rate = self._tokens / max(1e-9, time.monotonic() - self._started)
        self.bar.advance(facts=f"epoch {trainer.current_epoch + 1} {' '.join(shown)} {rate:,.0f} tokens/s")


SHOWN = (("loss", "train/loss"), ("val loss", "val/loss"), ("val accuracy", "val/accuracy"))
