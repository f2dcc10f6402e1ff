"""Stops a training run whose loss or gradient is not finite, and advises when memory runs out.

Before each optimizer step, on all ranks together, the loss of the step and its gradient norm must be finite. If not, the rows
of the step are written to <run>/nonfinite_batch.json, and weights and checkpoints remain unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cft.errors import UserError
from cft.files import write_json
from cft.training.checkpointing.position import step_is_done

REPORT = "nonfinite_batch.json"
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class TrainingDiverged(UserError, FloatingPointError):
    """The loss or the gradient of a step is NaN or infinite; raised before the optimizer step."""

    def __init__(self, what: str, *, step: int, learning_rate: float, parameters: tuple[str, ...] = ()) -> None:
        self.what, self.step, self.learning_rate, self.parameters = what, step, learning_rate, parameters
        where = f" (first in {parameters[0]})" if parameters else ""
        super().__init__(
            f"step {step}: {what}{where}; this step was not applied, and its rows are listed in {REPORT} in the run "
            f"folder. {_advice(step, learning_rate=learning_rate)}"
        )


def _advice(step: int, *, learning_rate: float) -> str:
    if step == 0:
        return "This is the first step: check those rows and the model's weights"
    return (
        f"Earlier updates were too large: lower optimizer.lr (now {learning_rate:g}) or raise schedule.warmup_fraction; "
        "clipping does not help, since an adaptive optimizer takes equally large steps with smaller gradients. Or check those "
        "rows"
    )


class OutOfMemory(UserError, MemoryError):
    """The device has too little memory for a step; the message lists the keys that reduce it."""


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients over all shards; 0-dimensional."""
    from torch.distributed.tensor import DTensor

    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def require_finite(module: nn.Module, *, loss: float, norm: float, step: int, learning_rate: float) -> None:
    """Raises TrainingDiverged. loss, norm: of the whole step, so that either all ranks raise or none."""
    if not math.isfinite(loss):
        raise TrainingDiverged(f"the loss is {loss}", step=step, learning_rate=learning_rate)
    if not math.isfinite(norm):
        bad = tuple(name for name, p in module.named_parameters() if p.grad is not None and not _is_finite(p.grad))
        raise TrainingDiverged(
            f"the gradient's norm is {norm} and the loss {loss:.4g}",
            step=step,
            learning_rate=learning_rate,
            parameters=bad,
        )


def _is_finite(gradient: Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    return bool(torch.isfinite(local).all())


class Guards(pl.Callback):
    """Records the rows of the current optimizer step, and writes them to a file if the step is not finite."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: list[tuple[str, ...]] = []
        self._losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._rows.append(batch.row_ids)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if step_is_done(trainer):
            self._rows, self._losses = [], []

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, TrainingDiverged):
            return
        own = [
            {"rank": trainer.global_rank, "row_ids": list(rows), "finite": bool(torch.isfinite(loss))}
            for rows, loss in zip(self._rows, self._losses, strict=True)
        ]
        everywhere: list[Any] = [own]
        if trainer.world_size > 1:
            everywhere = [None] * trainer.world_size
            dist.all_gather_object(everywhere, own)
        if trainer.is_global_zero:
            write_json(
                self.folder / REPORT,
                {
                    "step": exception.step,
                    "epoch": trainer.current_epoch,
                    "found": exception.what,
                    "learning_rate": exception.learning_rate,
                    "parameters_with_a_gradient_that_is_not_finite": list(exception.parameters),
                    "micro_batches": [micro for of_rank in everywhere for micro in of_rank],
                },
            )


def memory_advice(error: BaseException) -> OutOfMemory | None:
    """The error to raise if `error` means that memory ran out, else None."""
    if not (isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)):
        return None
    if isinstance(error, UserError):
        return None
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return OutOfMemory(f"the device's memory ran out ({reason}). {ADVICE}")


ADVICE = (
    "To reduce memory, cheapest first: halve data.batch_size and double trainer.accumulate_grad_batches (the same "
    "result); model.gradient_checkpointing=true (the same result, about a third slower); a lower loss.chunk_tokens (logits); "
    "trainer.precision=bf16-mixed (activations); trainer=fsdp over more devices; model/lora=default or a lower "
    "data.max_tokens (another result)"
)
