"""What was spent: annotation (solving, counterfactuals) beside the training of each arm, in seconds and tokens.

Tokens are decoded ones for annotation and response tokens seen for training (rows x epochs), seconds as each stage
measured them on its own machine. For scale: an RL step that samples eight responses to each of the same problems decodes
eight times what solving them took.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cft.report.arms import Arm, Comparison, Run

RL_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Spent:
    """One part of the work; seconds and tokens None where they were not recorded. runs: that it is the mean of."""

    part: str
    seconds: float | None
    tokens: float | None
    runs: int


def annotation_spent(manifest: Mapping[str, Any]) -> list[Spent]:
    """Of an annotation's manifest; empty where it recorded nothing."""
    compute = manifest.get("compute") or {}
    found = []
    for part, prefix in (("annotation: solving", "solve"), ("annotation: counterfactuals", "counterfactual")):
        seconds, tokens = compute.get(f"{prefix}_seconds"), compute.get(f"{prefix}_tokens")
        if seconds is not None or tokens is not None:
            found.append(Spent(part, seconds, tokens, 1))
    return found


def rl_steps(manifest: Mapping[str, Any]) -> float | None:
    """The annotation's tokens in steps of eight samples a problem on the same problems."""
    compute = manifest.get("compute") or {}
    solve = compute.get("solve_tokens")
    return (solve + compute.get("counterfactual_tokens", 0)) / (RL_SAMPLES * solve) if solve else None


def training_spent(comparisons: Sequence[Comparison]) -> list[Spent]:
    """Mean over the seeds of each trained arm; a training that was measured on several benchmarks counts once."""
    arms: dict[str, Arm] = {}
    trainings: dict[str, dict[int, Run]] = {}
    for arm in (arm for comparison in comparisons for arm in comparison.arms):
        for run in arm.runs:
            if "train_seconds" in run.facts:
                arms.setdefault(arm.identity, arm)
                trainings.setdefault(arm.identity, {}).setdefault(run.seed, run)
    wholes = [replace(arm, runs=tuple(trainings[identity].values())) for identity, arm in arms.items()]
    return [
        Spent(f"training: {arm.label}", arm.mean_fact("train_seconds"), _mean_tokens(arm), len(arm.runs))
        for arm in wholes
    ]


def records(spent: Sequence[Spent]) -> Iterator[Mapping[str, object]]:
    """Rows of compute.csv."""
    for part in spent:
        yield {"part": part.part, "seconds": part.seconds, "tokens": part.tokens, "mean_of_runs": part.runs}


def _mean_tokens(arm: Arm) -> float | None:
    found = []
    for run in arm.runs:
        tokens = (run.facts.get("data") or {}).get("response_tokens")
        epochs = (run.facts.get("budget") or {}).get("epochs")
        if tokens is not None and epochs is not None:
            found.append(tokens * epochs)
    return float(np.mean(found)) if found else None
