"""Callbacks of TRL's trainer: one writes metrics to the loggers, one stops the run when it is interrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cft.loggers.build import log_values
from cft.rl.reward import PASS_RATE, UNDECIDED_RATE
from cft.training.callbacks.interruption import Interruption

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

# TRL's name of a metric -> its name in metrics.csv.
LOGGED = {
    "reward": "train/reward",
    "reward_std": "train/reward_std",
    PASS_RATE: f"train/{PASS_RATE}",
    UNDECIDED_RATE: f"train/{UNDECIDED_RATE}",
    "entropy": "train/entropy",
    "completions/mean_length": "train/response_tokens",
    "completions/clipped_ratio": "train/cut_off_rate",
    "frac_reward_zero_std": "train/groups_without_signal",
    "clip_ratio/region_mean": "train/clipped_tokens",
    "kl": "train/kl",
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "lr",
    "step_time": "perf/step_seconds",
}


class Record(TrainerCallback):
    """Log the metrics of each optimizer step, counted from 0 as in cft train.

    Args:
        loggers: Where metrics are written.
        on_step: Called after each optimizer step.
        further: Metrics of the current step that TRL does not compute.
    """

    def __init__(self, loggers: Sequence[Logger], *, on_step: Any, further: Mapping[str, float]) -> None:
        self.loggers, self.on_step, self.further = loggers, on_step, further

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "reward" in logs:
            found = {ours: float(logs[theirs]) for theirs, ours in LOGGED.items() if theirs in logs}
            log_values(self.loggers, {**found, **self.further}, step=state.global_step - 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.on_step()


class StopWhenAsked(TrainerCallback):
    """On an interruption, stop after the current optimizer step and save a checkpoint.

    The stage then raises `Interrupted` (`Interruption.stop_if_asked`).

    Args:
        interruption: The reasons to stop.
        every: Optimizer steps on the same responses. A checkpoint does not hold responses, so the run stops only at a multiple.
    """

    def __init__(self, interruption: Interruption, *, every: int) -> None:
        self.interruption, self.every = interruption, every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        ends_here = state.global_step % self.every == 0 and state.global_step < state.max_steps
        if ends_here and any(self.interruption.reasons()):
            control.should_save = control.should_training_stop = True
