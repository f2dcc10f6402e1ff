"""Names of runs for loggers (W&B) and lineages: `tiny_arith-critical-uniform-seed0`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def run_name(arm: Mapping[str, Any], *further: str, seed: int) -> str:
    """further: parts between the method and the seed, such as the benchmark of an evaluation."""
    return "-".join([*map(str, parts_of_name(arm).values()), *further, f"seed{seed}"])


def parts_of_name(arm: Mapping[str, Any]) -> dict[str, Any]:
    """Model, mask, weighting, the loss unless it is nll, and the loss of reinforcement learning after it."""
    parts = {key: arm[key] for key in ("model", "mask", "weighting") if arm.get(key) is not None}
    if arm.get("loss", "nll") != "nll":
        parts["loss"] = arm["loss"]
    return parts | ({"rl": arm["rl"]} if "rl" in arm else {})
