"""What an evaluation measures: the checkpoint, and the arm that its results belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cft.benchmarks.sweep import is_benchmark_override
from cft.decoding import Rule
from cft.runs.arm import arm_of
from cft.runs.job import Job
from cft.runs.results import RunResults
from cft.runs.run import EXPORT, MEASURED_AS, identity_of, settings_of
from cft.runs.start import REPLACED

ARM_KEYS = ("model",)
DECODING = "decoding"


def evaluated_identity(
    job: Job, trained: RunResults | None, *, checkpoint: str, weights: str, rule: Rule | None
) -> dict[str, Any]:
    """arm, settings and identity: what training recorded wins over what this evaluation would say. Its budget, data and
    further facts come along. A decoding rule makes another arm of the same model.

    weights: hash of a checkpoint that says nothing of its training, else "". Its weights tell such a model from others.
    """
    arm = {**arm_of(job, ARM_KEYS), **(trained.arm if trained else {})}
    # What it is measured on is no part of what it is, nor what the checkpoint takes the place of.
    replaced = REPLACED if checkpoint else ()
    arm = {name: value for name, value in arm.items() if name not in replaced and not is_benchmark_override(name)}
    arm = {name: value for name, value in arm.items() if name.split(".")[0] != DECODING}
    decoded = settings_of(job, (DECODING,)) if rule else {}
    if rule:
        arm |= {DECODING: job.choices.get(DECODING, rule.name)} | _given(job, decoded)
    if trained:
        settings = {**trained.settings, **decoded}
        return {
            "arm": arm,
            "settings": settings,
            "identity": identity_of(settings) if rule else trained.identity,
            **trained.training_facts(),
        }
    settings = settings_of(job, MEASURED_AS) | decoded
    if weights:
        path = Path(checkpoint)
        name = f"{path.parent.name}/{path.name}" if path.name == EXPORT else path.name
        arm |= {"model": name, "weights": weights[:12]}
    return {"arm": arm, "settings": settings, "identity": identity_of(settings)}


def _given(job: Job, decoded: Mapping[str, Any]) -> dict[str, Any]:
    """The rule's values that the command line gives."""
    names = [override.lstrip("+~").partition("=")[0] for override in job.overrides]
    return {name: decoded[name] for name in names if name in decoded}
