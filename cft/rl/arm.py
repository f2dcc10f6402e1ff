"""Which arm of a comparison a run of cft rl is: the arm that it starts from, and what was made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cft.runs.arm import METHOD, part_of
from cft.runs.results import RunResults

# Parts of the config that make the weights what they are.
PARTS = (
    *("model", "prompt", "data", "optimizer", "schedule", "rollout", "grpo", "critical", "positions", "reward"),
    *("steps", "limit", "pass_rates", "micro_batch_size", "max_grad_norm", "precision"),
)
RATES_OF = "pass_rates.annotation"
RL = "rl"  # the key of an arm that says so: its loss
_START = "start"
_ELSEWHERE = ("checkpoint", "resume", "save_every_n_steps", "device", "export")


def start_settings(trained: RunResults | None, *, weights: str) -> dict[str, Any]:
    """Of what it starts from, under `start.`: its settings, or the hash of weights of which nothing is known."""
    if trained is not None:
        return {f"{_START}.{name}": value for name, value in trained.settings.items()}
    return {f"{_START}.weights": weights} if weights else {}


def arm_after(
    trained: RunResults | None, own: Mapping[str, Any], *, loss_type: str, checkpoint: str, weights: str
) -> dict[str, Any]:
    """own: the arm by this run's own config. checkpoint, weights: of a start without results, else ""."""
    mine = {name: value for name, value in own.items() if part_of(name) not in _ELSEWHERE and name != RATES_OF}
    mine[RL] = loss_type
    if trained is None:
        return mine | ({"model": checkpoint, "weights": weights[:12]} if weights else {})
    before = {
        name if part_of(name) in (*METHOD, "model", RL) else f"{_START}.{name}": value
        for name, value in trained.arm.items()
    }
    return {**mine, **before, RL: f"{before[RL]}, {loss_type}" if RL in before else loss_type}
