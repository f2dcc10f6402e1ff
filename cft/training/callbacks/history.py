"""Totals over the parts of a resumed training run: its duration, and the schedules it was trained with.

Learning rate and coefficients are scheduled over all optimizer steps. If a run is resumed with another trainer.max_epochs or
trainer.max_steps, its schedule is recomputed for another number of steps, so its weights differ from those of a run with that
number of steps from the start. Both facts are stored in the checkpoints; `replanned` is a setting in results.json, and
therefore part of the run's identity.
"""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl


class History(pl.Callback):
    """Measures from the start of training to its end, so that opening and closing loggers is not counted."""

    def __init__(self) -> None:
        self._before = 0.0  # seconds of the earlier parts, up to the checkpoint from which this part resumed
        self._begun: float | None = None
        self._plans: list[list[int]] = []  # of each schedule: [optimizer steps done at its start, total steps]
        self._spent = {"first_batch": 0.0, "later_batches": 0.0, "validation": 0.0}
        self._since = 0.0  # start of the current batch or validation

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before, self._begun = self.seconds(), None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._since = time.monotonic()
        spans = int(trainer.estimated_stepping_batches)
        if not self._plans or self._plans[-1][1] != spans:
            self._plans.append([trainer.global_step, spans])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._spend("later_batches" if self._spent["first_batch"] else "first_batch")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._spend("validation")

    def _spend(self, on: str) -> None:
        self._spent[on] += time.monotonic() - self._since

    def spent(self) -> dict[str, float]:
        """Seconds of the first micro-batch, which includes memory and kernel setup, of the later ones, and of validation."""
        return {name: round(seconds, 4) for name, seconds in self._spent.items()}

    def seconds(self) -> float:
        """Seconds of training over all parts, without the work that was lost when a process was killed."""
        return self._before + (0.0 if self._begun is None else time.monotonic() - self._begun)

    def replanned(self) -> dict[str, str]:
        """The setting that identifies a run whose schedule was recomputed; empty for other runs."""
        changes = [
            f"at step {step} from {before} to {after} steps"
            for (_, before), (step, after) in zip(self._plans, self._plans[1:], strict=False)
        ]
        return {"schedule.replanned": ", ".join(changes)} if changes else {}

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds(), "spent": dict(self._spent), "plans": [list(plan) for plan in self._plans]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = float(state_dict["seconds"])
        self._spent = dict(state_dict["spent"])
        self._plans = [list(plan) for plan in state_dict["plans"]]
