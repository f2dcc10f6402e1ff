"""The arm of a comparison that a run of cft rl belongs to: the arm of its starting checkpoint plus its own settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cft.runs.arm import METHOD, part_of
from cft.runs.results import RunResults

# Parts of the config that determine the trained weights.
PARTS = (
    *("model", "prompt", "data", "optimizer", "schedule", "rollout", "grpo", "critical", "positions", "reward"),
    *("steps", "limit", "pass_rates", "micro_batch_size", "max_grad_norm", "precision"),
)
RATES_OF = "pass_rates.annotation"
RL = "rl"  # key that an arm has after cft rl; its value is the loss type
_START = "start"
_NOT_IN_ARM = ("checkpoint", "resume", "save_every_n_steps", "device", "export")


def start_settings(trained: RunResults | None, *, weights: str) -> dict[str, Any]:
    """Settings of the starting checkpoint, under `start.`; without results of it, the hash of its weights.

    Args:
        trained: Results of the run that trained the starting checkpoint, None if there are none.
        weights: SHA-256 of its weights, "" if unknown.
    """
    if trained is not None:
        return {f"{_START}.{name}": value for name, value in trained.settings.items()}
    return {f"{_START}.weights": weights} if weights else {}


def arm_after(
    trained: RunResults | None, own: Mapping[str, Any], *, loss_type: str, checkpoint: str, weights: str
) -> dict[str, Any]:
    """The arm of a run: that of the starting checkpoint, extended by this run's own.

    Args:
        trained: Results of the run that trained the starting checkpoint, None if there are none.
        own: The arm according to this run's own config.
        loss_type: This run's loss.
        checkpoint: Name of a starting checkpoint without results, else "".
        weights: Hash of its weights, else "".
    """
    mine = {name: value for name, value in own.items() if part_of(name) not in _NOT_IN_ARM and name != RATES_OF}
    mine[RL] = loss_type
    if trained is None:
        return mine | ({"model": checkpoint, "weights": weights[:12]} if weights else {})
    before = {
        name if part_of(name) in (*METHOD, "model", RL) else f"{_START}.{name}": value
        for name, value in trained.arm.items()
    }
    return {**mine, **before, RL: f"{before[RL]}, {loss_type}" if RL in before else loss_type}
