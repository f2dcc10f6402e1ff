"""What the parts of a resumed training add up to: the seconds it took and on what, and the schedules it was trained under.

Learning rate and coefficients are planned over all optimizer steps. A run that is resumed with other trainer.max_epochs
or trainer.max_steps is planned again over another number of steps, so that its weights are not those of a run that was
requested as many from the start. Both facts travel in the checkpoints; `replanned` is a setting in results.json, and so
part of the run's identity.
"""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl


class History(pl.Callback):
    """Counts from the start of training to its end: what loggers take to open and to close is not the method's cost."""

    def __init__(self) -> None:
        self._before = 0.0  # seconds of the parts before this one, up to the checkpoint it began from
        self._begun: float | None = None
        self._plans: list[list[int]] = []  # [optimizer steps done when it was made, steps that it spans]
        self._spent = {"first_batch": 0.0, "later_batches": 0.0, "validation": 0.0}
        self._since = 0.0  # the batch or validation at hand began

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
        """Seconds of the first micro-batch, in which memory and kernels are set up, of the later ones, and of validation."""
        return {name: round(seconds, 4) for name, seconds in self._spent.items()}

    def seconds(self) -> float:
        """Of training, over all parts; what a kill lost is not counted."""
        return self._before + (0.0 if self._begun is None else time.monotonic() - self._begun)

    def replanned(self) -> dict[str, str]:
        """The setting that tells such a run from one of a single plan; empty for the latter."""
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
