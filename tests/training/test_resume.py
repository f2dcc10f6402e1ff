"""A training cut off anywhere goes on to the same bits; signals and the time limit cut it off at a boundary."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch

from cft.config.build import ConfigError
from cft.errors import Interrupted
from cft.training.callbacks.history import History
from cft.training.callbacks.interruption import Interruption, StopWhenAsked
from cft.training.callbacks.last_validation import LastValidation
from cft.training.checkpointing.checkpoints import kept_checkpoints, newest_checkpoint, read_checkpoint
from cft.training.checkpointing.keeper import CheckpointKeeper
from cft.training.checkpointing.position import position_of
from tests.scale_driver import STEPS, Losses, run

DROPOUT = 0.3  # the weights then show every draw of random numbers, too


class Killed(Exception):
    """Stands for the end of the process; no callback of ours knows it."""


class At(pl.Callback):
    """Calls `act` in a hook of Lightning, the `call`-th time that the hook runs after `step` optimizer steps."""

    def __init__(self, hook: str, step: int, act: Callable[[], None], *, call: int = 1) -> None:
        calls = 0

        def wrapped(trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
            nonlocal calls
            calls += trainer.global_step == step
            if trainer.global_step == step and calls == call:
                act()

        setattr(self, hook, wrapped)


def kill() -> None:
    raise Killed


def train(
    folder: Path, *, more: tuple[pl.Callback, ...] = (), start: Path | None = None, steps: int = STEPS
) -> tuple[dict[str, Any], Losses]:
    """(what training leaves: weights and optimizer state, the losses it saw): 77 rows, 4 micro-batches of 2 a step."""
    torch.manual_seed(17)  # a resumed process has drawn other numbers before
    module, losses = run(
        folder,
        strategy="auto",
        world=1,
        accumulate=4,
        batch=2,
        checkpoint=start,
        dropout=DROPOUT,
        every=3,
        more=(*more, LastValidation()),
        steps=steps,
    )
    optimizer: Any = module.optimizers(use_pl_optimizer=False)
    return {"weights": module.state_dict(), "optimizer": optimizer.state_dict()["state"]}, losses


def equal_bits(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal_bits(one[key], other[key]) for key in one)
    return torch.equal(one, other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Losses]:
    return train(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("hook", "step", "call", "saved"),
    [
        # right after a step that wrote nothing
        pytest.param("on_train_batch_start", 4, 1, 3, marks=pytest.mark.slow),
        ("on_before_backward", 5, 3, 3),  # in the third of four micro-batches
        pytest.param("on_before_backward", 6, 1, 6, marks=pytest.mark.slow),  # right after a checkpoint
        pytest.param(
            "on_validation_batch_end", 10, 2, 10, marks=pytest.mark.slow
        ),  # in the validation at the end of the first epoch
        pytest.param(
            "on_train_epoch_end", 10, 1, 10, marks=pytest.mark.slow
        ),  # validated; the end of the epoch is not written
        ("on_train_epoch_start", 10, 1, 10),  # between two epochs; only the first epoch starts with 0 steps
        pytest.param("on_train_batch_start", 14, 2, 12, marks=pytest.mark.slow),  # in the second epoch
        # in the last validation, all steps done
        pytest.param("on_validation_batch_end", 20, 1, 20, marks=pytest.mark.slow),
    ],
)
def test_a_training_killed_anywhere_goes_on_to_the_same_bits(
    whole: tuple[dict[str, Any], Losses], tmp_path: Path, hook: str, step: int, call: int, saved: int
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, more=(At(hook, step, kill, call=call),))
    start = newest_checkpoint(tmp_path)
    assert position_of(read_checkpoint(start)).steps == saved
    state, losses = train(tmp_path, start=start)
    assert equal_bits(state, whole[0])
    assert losses.train == {n: loss for n, loss in whole[1].train.items() if n > saved}
    validated = step == 10 and hook == "on_train_epoch_start"  # the only kill with the epoch written in full
    assert losses.validation == {n: loss for n, loss in whole[1].validation.items() if n > saved - (not validated)}


@pytest.fixture
def handlers() -> Iterator[Interruption]:
    interruption = Interruption(max_hours=0)
    with interruption.handlers():
        yield interruption


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_in_the_middle_of_a_step_saves_that_step_and_stops(
    whole: tuple[dict[str, Any], Losses], tmp_path: Path, handlers: Interruption, number: signal.Signals
) -> None:
    keeper = CheckpointKeeper(tmp_path, every_n_steps=0, keep=2)
    asked = At("on_before_backward", 4, lambda: os.kill(os.getpid(), number), call=2)
    with pytest.raises(Interrupted, match=number.name):
        train(tmp_path, more=(asked, StopWhenAsked(handlers, keeper)))
    start = newest_checkpoint(tmp_path)
    assert position_of(read_checkpoint(start)).steps == 5  # the step under way was finished
    state, _ = train(tmp_path, start=start)
    assert equal_bits(state, whole[0])


def test_the_time_limit_stops_at_the_next_boundary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = CheckpointKeeper(tmp_path, every_n_steps=0, keep=2)
    interruption = Interruption(max_hours=1)
    now = time.monotonic()
    late = At("on_before_backward", 2, lambda: monkeypatch.setattr(time, "monotonic", lambda: now + 3601), call=3)
    with pytest.raises(Interrupted, match=r"interruption\.max_hours"):
        train(tmp_path, more=(late, StopWhenAsked(interruption, keeper)))
    assert [path.name for path in kept_checkpoints(tmp_path)] == ["step-00000003.ckpt"]


def test_a_signal_ends_long_work_at_once_and_no_other_work(handlers: Interruption) -> None:
    def work() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return "done"

    assert handlers.unless_asked(work, otherwise="given up") == "given up"
    assert handlers.unless_asked(lambda: "done", otherwise="given up") == "given up"
    with pytest.raises(Interrupted, match="SIGTERM"):
        handlers.stop_if_asked()
    calm = Interruption(max_hours=0)
    assert calm.unless_asked(lambda: "done", otherwise="given up") == "done"
    calm.stop_if_asked()


def test_the_handler_that_was_there_before_hears_of_the_signal_afterwards() -> None:
    heard: list[tuple[int, bool]] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append((number, over)))
    over = False
    try:
        with Interruption(max_hours=0).handlers():
            os.kill(os.getpid(), signal.SIGUSR2)
            over = True
        assert heard == [(signal.SIGUSR2, True)]
        os.kill(os.getpid(), signal.SIGUSR2)
        assert len(heard) == 2  # it is in its place again
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    class Few(CheckpointKeeper):
        pass

    run(
        tmp_path / "unused",
        strategy="auto",
        world=1,
        accumulate=4,
        batch=2,
        more=(Few(tmp_path, every_n_steps=3, keep=2),),
    )
    assert [path.name for path in kept_checkpoints(tmp_path)] == [f"step-{STEPS:08d}.ckpt", "step-00000018.ckpt"]
    assert not list(tmp_path.glob(".*"))  # no temporary file


@pytest.mark.parametrize("steps", [7, pytest.param(13, marks=pytest.mark.slow)])
def test_the_last_step_is_validated_where_it_ends_no_epoch(tmp_path: Path, steps: int) -> None:
    """An epoch has 10 steps. A kill within the last validation leaves one that is due."""
    state, losses = train(tmp_path / "whole", steps=steps)
    assert list(losses.validation) == [*range(10, steps, 10), steps]
    with pytest.raises(Killed):
        train(tmp_path / "cut", steps=steps, more=(At("on_validation_batch_end", steps, kill, call=2),))
    start = newest_checkpoint(tmp_path / "cut")
    assert position_of(read_checkpoint(start)).steps == steps
    again, rest = train(tmp_path / "cut", steps=steps, start=start)
    assert equal_bits(again, state)
    assert rest.train == {}
    assert rest.validation == {steps: losses.validation[steps]}


def test_seconds_and_plans_add_up_over_the_parts_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr("cft.training.callbacks.history.time.monotonic", lambda: now)

    class Clock(pl.Callback):
        """A second passes at the beginning of every step."""

        def on_before_zero_grad(self, *args: Any, **named: Any) -> None:
            nonlocal now
            now += 1.0

    class Loggers(pl.Callback):
        """Opening and closing take long, as where a server does not answer."""

        def setup(self, *args: Any, **named: Any) -> None:
            nonlocal now
            now += 300.0

        teardown = setup

    first = History()
    now += 100.0  # loggers opened before the fit
    with pytest.raises(Killed):
        train(tmp_path, steps=20, more=(Clock(), Loggers(), first, At("on_before_backward", 3, kill)))
    assert first.seconds() == 4.0  # of which the checkpoint after the third step knows three
    assert first.replanned() == {}
    now += 1000.0  # nobody was at work
    second = History()
    train(tmp_path, steps=20, start=newest_checkpoint(tmp_path), more=(Clock(), Loggers(), second))
    assert second.seconds() == 20.0
    assert second.replanned() == {}
    third = History()
    train(tmp_path, steps=23, start=newest_checkpoint(tmp_path), more=(Clock(), third))
    assert third.seconds() == 23.0
    assert third.replanned() == {"schedule.replanned": "at step 20 from 20 to 23 steps"}


@pytest.mark.slow
def test_the_last_step_is_validated_where_its_epoch_is_not_due(tmp_path: Path) -> None:
    class EveryThird(pl.Callback):
        def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            trainer.check_val_every_n_epoch = 3

    _, losses = train(tmp_path, more=(EveryThird(),))
    assert list(losses.validation) == [STEPS]


@pytest.mark.parametrize(
    ("logged", "reason"),
    [
        ({}, "training ended without validation"),
        ({"val/accuracy": 0.5}, "no such metric was logged; choose one of val/accuracy"),
        ({"val/loss": float("nan")}, "no epoch logged a finite value of it"),
    ],
)
def test_a_training_without_a_best_epoch_says_why(logged: dict[str, float], reason: str) -> None:
    from cft.stages.train import _load_best

    best, trainer = SimpleNamespace(best_model_path="", monitor="val/loss"), SimpleNamespace(callback_metrics=logged)
    with pytest.raises(ConfigError, match=reason):
        _load_best(cast(Any, None), cast(Any, None), best, cast(Any, trainer), into=cast(Any, None))
