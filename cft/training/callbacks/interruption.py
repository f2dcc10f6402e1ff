"""Ends of a training that come from outside: signals of a cluster, and the time limit of the run itself.

A signal handler sets a flag and no more: a collective operation inside a handler would meet ranks that are in the middle of
another one (Lightning issue 20806). After every optimizer step the ranks sum their flags; if any is set, all of them write the
checkpoint and stop. Only where a rank works for itself and for long, solving problems, does a signal end that work at once.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch

from cft.errors import Interrupted
from cft.training.checkpointing.keeper import CheckpointKeeper
from cft.training.checkpointing.position import Next

SIGNALS: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_REASONS = (*(s.name for s in SIGNALS), "the time limit interruption.max_hours")
_Result = TypeVar("_Result")


class _Asked(BaseException):
    """Raised by the signal handler, within `Interruption.unless_asked` alone; no `except Exception` may swallow it."""


class Interruption:
    """What this process was told. max_hours: from now on, 0 = no limit."""

    def __init__(self, *, max_hours: float) -> None:
        self._deadline = time.monotonic() + 3600 * max_hours if max_hours > 0 else float("inf")
        self._asked = dict.fromkeys(SIGNALS, False)
        self._raises = False

    @contextmanager
    def handlers(self) -> Iterator[None]:
        """Take the signals for the time of the block. A launcher that handled them before is told of those that came
        once the block has ended: submitit then puts the job back into the queue."""
        before = {s: signal.getsignal(s) for s in SIGNALS}
        self.install()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for s, handler in before.items():
                    signal.signal(s, signal.SIG_DFL if handler is None else handler)
            for s, handler in before.items():
                if self._asked[s] and callable(handler):
                    handler(s, None)

    def install(self) -> None:
        """Once more when training begins, since Lightning has put its own handlers in front, which are collective."""
        if threading.current_thread() is threading.main_thread():  # Python allows no other thread to
            for s in SIGNALS:
                signal.signal(s, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._asked[signal.Signals(number)] = True
        if self._raises:
            self._raises = False
            raise _Asked

    def unless_asked(self, work: Callable[[], _Result], *, otherwise: _Result) -> _Result:
        """The result of `work`, which must do nothing collective; `otherwise` if a signal came before or during it."""
        try:
            self._raises = True
            if any(self._asked.values()):
                return otherwise
            return work()
        except _Asked:
            return otherwise
        finally:
            self._raises = False

    def reasons(self) -> list[bool]:
        """Of this process, in the order of _REASONS."""
        return [*(self._asked[s] for s in SIGNALS), time.monotonic() > self._deadline]

    def stop_if_asked(self) -> None:
        """For a process that works alone, before and after training. Raises Interrupted."""
        _stop(self.reasons())

    def stop_if_agreed(self, trainer: pl.Trainer, *, first: Callable[[], None] = lambda: None) -> None:
        """Raises Interrupted on all ranks if any of them was told to stop, after `first`; all call it at one point."""
        flags = torch.tensor(self.reasons(), dtype=torch.int32, device=trainer.strategy.root_device)
        total: Any = trainer.strategy.reduce(flags, reduce_op="sum")
        if bool(total.any()):
            first()
        _stop(total.tolist())


def _stop(flags: list[Any]) -> None:
    reasons = [name for name, flag in zip(_REASONS, flags, strict=True) if flag]
    if reasons:
        raise Interrupted(" and ".join(reasons))


class StopWhenAsked(pl.Callback):
    """Ends the training with Interrupted at the first boundary after it was requested, the checkpoint written."""

    def __init__(self, interruption: Interruption, keeper: CheckpointKeeper | None) -> None:
        self.interruption = interruption
        self.keeper = keeper

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.interruption.install()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._stop_if_agreed(trainer, next="step")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_if_agreed(trainer, next="validation")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.interruption.stop_if_agreed(trainer)  # the keeper wrote the state when the validation began

    def _stop_if_agreed(self, trainer: pl.Trainer, *, next: Next) -> None:
        save = self.keeper.save if self.keeper else lambda trainer, next: None
        self.interruption.stop_if_agreed(trainer, first=lambda: save(trainer, next=next))
