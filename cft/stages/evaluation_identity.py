"""The identity of an evaluation: its checkpoint, and the arm to which its results belong."""

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
    """arm, settings, identity and training facts of an evaluation's results.

    Values recorded by the training take precedence over those of the evaluation. A decoding rule makes another arm of the same
    model.

    Args:
        job: the evaluation's job.
        trained: results of the checkpoint's training, if known.
        checkpoint: the evaluated checkpoint, "" for a published model.
        weights: hash of the weights of a checkpoint without training results, which identifies it; else "".
        rule: the decoding rule, if any.
    """
    arm = {**arm_of(job, ARM_KEYS), **(trained.arm if trained else {})}
    # The benchmark is not part of the arm, nor are settings that the checkpoint replaces.
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
    """The rule's values that are set on the command line."""
    names = [override.lstrip("+~").partition("=")[0] for override in job.overrides]
    return {name: decoded[name] for name in names if name in decoded}
