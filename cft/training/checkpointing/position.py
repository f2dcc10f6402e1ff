"""The position of a training run, from which it can resume exactly within an epoch.

    order of an epoch = permutation(seed, epoch)      position = optimizer steps done in the epoch
    rows already used = steps done in the epoch * rows of an optimizer step, for any number of processes

Lightning restores its own counters but replays a resumed epoch from its first row (Lightning issue 19764). Its counters count
micro-batches, which correspond to other rows if the number of processes changes. So a checkpoint contains a Position, from
which Lightning's counters are set on resuming. `next` is what follows: a step, the validation after a step, or the next epoch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import lightning.pytorch as pl

KEY = "position"  # in the checkpoint
Next = Literal["step", "validation", "epoch"]


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a training run, between two optimizer steps.

    Args:
        epoch: counted from 0.
        epoch_steps: optimizer steps done in the epoch.
        steps: optimizer steps done in total.
        rows_per_step: rows of an optimizer step, over all ranks.
        next: what follows.
    """

    epoch: int
    epoch_steps: int
    steps: int
    rows_per_step: int
    next: Next

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def position_of(checkpoint: dict[str, Any]) -> Position:
    return Position(**checkpoint[KEY])


def step_is_done(trainer: pl.Trainer) -> bool:
    """Whether the current micro-batch is the last one of its optimizer step.

    If true in on_train_batch_end, the optimizer step is done, and the state is that between two steps.
    """
    if trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0:
        return True
    return epoch_is_over(trainer) and not trainer.strategy.handles_gradient_accumulation


def epoch_is_over(trainer: pl.Trainer) -> bool:
    """Whether the current or just finished micro-batch is the last one of its epoch."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch or progress.current.ready == trainer.num_training_batches


def is_last_step(trainer: pl.Trainer) -> bool:
    """In on_train_batch_end: whether this was the last optimizer step of the training run."""
    loop, max_epochs = trainer.fit_loop.epoch_loop, trainer.max_epochs
    if 0 <= loop.max_steps <= loop.global_step:
        return True
    epochs: Any = trainer.fit_loop.epoch_progress.current
    return epoch_is_over(trainer) and max_epochs is not None and 0 <= max_epochs <= epochs.processed + 1


def current_position(trainer: pl.Trainer, *, rows_per_step: int, next: Next) -> Position:
    """The current position, between two steps. next: what follows."""
    steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
    epochs: Any = trainer.fit_loop.epoch_progress.current
    # epochs.started includes the current epoch and, in the epoch's last hook, the epoch just finished.
    return Position(epochs.started - 1, steps.current.completed, steps.total.completed, rows_per_step, next)


def write_counters(checkpoint: dict[str, Any], position: Position, *, accumulate: int) -> None:
    """Set the counters in a Lightning checkpoint so that Lightning resumes at `position`.

    From the totals, Lightning infers where it stopped: within an epoch after a step ("step"), or within the validation that
    follows a step ("validation"). The other counters are set in `correct_counters`.

    Args:
        checkpoint: the Lightning checkpoint, changed in place.
        position: where to resume.
        accumulate: micro-batches per optimizer step.
    """
    from cft.training.lightning_internals import epoch_loop_state

    loops = checkpoint["loops"]["fit_loop"]
    batches = position.steps * accumulate  # any positive number works, see correct_counters
    done = batches - 1 if position.next == "step" else batches
    batch = {"ready": batches, "started": batches, "processed": batches, "completed": done}
    loops["epoch_loop.batch_progress"] = {"total": dict(batch), "current": dict(batch), "is_last_batch": False}
    loops["epoch_loop.state_dict"] = epoch_loop_state(steps=position.steps - 1)
    total, current = position.steps, position.epoch_steps
    loops["epoch_loop.scheduler_progress"] = {
        "total": {"ready": total, "completed": total},
        "current": {"ready": current, "completed": current},
    }
    loops["epoch_loop.automatic_optimization.optim_progress"] = {
        "optimizer": {
            "step": {
                "total": {"ready": total, "completed": total},
                "current": {"ready": current, "completed": current},
            },
            "zero_grad": {
                "total": {"ready": total, "started": total, "completed": total},
                "current": {"ready": current, "started": current, "completed": current},
            },
        }
    }
    within = int(position.next == "validation")
    validation = {"ready": within, "started": within, "processed": 0, "completed": 0}
    none = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    loops["epoch_loop.val_loop.batch_progress"] = {"total": validation, "current": none, "is_last_batch": False}
    ended = position.epoch + int(position.next == "epoch")
    epoch = {"ready": position.epoch + 1, "started": position.epoch + 1, "processed": ended, "completed": ended}
    loops["epoch_progress"] = {"total": dict(epoch), "current": dict(epoch)}


def correct_counters(trainer: pl.Trainer, position: Position) -> None:
    """Set the counters that depend on the number of micro-batches per epoch, which is known in on_train_start."""
    from cft.training.lightning_internals import begin_next_epoch

    loop = trainer.fit_loop.epoch_loop
    if position.next == "epoch":
        begin_next_epoch(trainer, steps=position.steps)
    batches = int(trainer.num_training_batches)
    current = min(position.epoch_steps * trainer.accumulate_grad_batches, batches)
    counts = {"current": current, "total": position.epoch * batches + current}
    for name, count in counts.items():
        tracker = getattr(loop.batch_progress, name)
        tracker.ready = tracker.started = tracker.processed = count
        tracker.completed = count - int(position.next == "step")
    loop.batch_progress.is_last_batch = position.next == "validation" and current == batches
