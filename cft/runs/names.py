"""What a run is called by loggers (W&B) and in a lineage: `tiny_arith-critical-uniform-seed0`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def run_name(arm: Mapping[str, Any], *further: str, seed: int) -> str:
    """further: what comes between the method and the seed, such as the benchmark of an evaluation."""
    return "-".join([*map(str, parts_of_name(arm).values()), *further, f"seed{seed}"])


def parts_of_name(arm: Mapping[str, Any]) -> dict[str, Any]:
    """Model, mask, weighting, and the loss where it is not the usual one."""
    parts = {key: arm[key] for key in ("model", "mask", "weighting") if arm.get(key) is not None}
    return parts if arm.get("loss", "nll") == "nll" else parts | {"loss": arm["loss"]}
