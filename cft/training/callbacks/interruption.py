"""Interruption of a training run by the signals of a cluster, or by the run's own time limit.

The signal handler only sets a flag: a collective operation in a handler could run while other ranks are in another collective
(Lightning issue 20806). After every optimizer step the ranks sum their flags; if any is set, all ranks write the checkpoint
and stop. Only long work without collectives, such as solving problems, is ended immediately by a signal.
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


class _StopRequested(BaseException):
    """Raised by the signal handler, only within `Interruption.unless_asked`; not an Exception, so that none catches it."""


class Interruption:
    """The signals and the time limit of this process.

    Args:
        max_hours: time limit in hours from now; 0 = no limit.
    """

    def __init__(self, *, max_hours: float) -> None:
        self._deadline = time.monotonic() + 3600 * max_hours if max_hours > 0 else float("inf")
        self._asked = dict.fromkeys(SIGNALS, False)
        self._raises = False

    @contextmanager
    def handlers(self) -> Iterator[None]:
        """Handle the signals during the block.

        After the block, a previously installed handler, such as that of a launcher, is called for each signal received:
        submitit then requeues the job.
        """
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
        """Install the handlers; again when training begins, since Lightning installs its own handlers, which are collective."""
        if threading.current_thread() is threading.main_thread():  # Python allows this in the main thread only
            for s in SIGNALS:
                signal.signal(s, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._asked[signal.Signals(number)] = True
        if self._raises:
            self._raises = False
            raise _StopRequested

    def unless_asked(self, work: Callable[[], _Result], *, otherwise: _Result) -> _Result:
        """The result of `work`, which must not use collectives; `otherwise` if a signal arrived before or during it."""
        try:
            self._raises = True
            if any(self._asked.values()):
                return otherwise
            return work()
        except _StopRequested:
            return otherwise
        finally:
            self._raises = False

    def reasons(self) -> list[bool]:
        """Whether each of _REASONS applies to this process."""
        return [*(self._asked[s] for s in SIGNALS), time.monotonic() > self._deadline]

    def stop_if_asked(self) -> None:
        """Raises Interrupted if this process was asked to stop; for work before and after training, on a single process."""
        _stop(self.reasons())

    def stop_if_agreed(self, trainer: pl.Trainer, *, first: Callable[[], None] = lambda: None) -> None:
        """Call `first` and raise Interrupted on all ranks if any of them was asked to stop. Collective."""
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
    """After a request to stop, writes the checkpoint at the next step boundary and ends training with Interrupted."""

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
        self.interruption.stop_if_agreed(trainer)  # the state was already saved when the validation began

    def _stop_if_agreed(self, trainer: pl.Trainer, *, next: Next) -> None:
        def save() -> None:
            if self.keeper:
                self.keeper.save(trainer, next=next)
                self.keeper.finish(trainer)

        self.interruption.stop_if_agreed(trainer, first=save)
