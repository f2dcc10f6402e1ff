"""The arm of a comparison that a run belongs to: everything that distinguishes it from other runs except the seed.

The method consists of the options of mask, weighting, loss, reference, groups and inputs, the options nested in them
(`mask@mask.of: numeric`, `regularizer@loss.regularizers.kl: sed`), and every value that differs from the option's yaml
(`cft/cli/method.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cft.runs.job import Job
from cft.runs.run import flat

METHOD = ("mask", "weighting", "loss", "reference", "groups", "inputs")
# Recorded for every run, so that a default value can be distinguished from another value.
ARM_KEYS = ("model", "data.annotation", *METHOD, "loss.normalizer", "optimizer.lr", "trainer.max_epochs")
# What makes other rows than right responses as they are, wherever it is set: all tokens of these are not plain fine-tuning.
OTHER_ROWS = ("data.responses", "data.prefix", "data.tags", "data.shuffle_responses")
# Overrides that say where a run is stored or which repetition it is, not what it does.
_NOT_AN_ARM = ("seed", "resume", "annotations_dir", "data.dir", "allow_targets", "experiment")


def arm_of(job: Job, keys: Sequence[str]) -> dict[str, Any]:
    """The options or values of the keys, the method of a training, and every further override."""
    values = flat(job.config)
    arm = {key: job.choices[key] if key in job.choices else values.get(key) for key in keys}
    arm |= {name: value for name, value in job.method.items() if name not in arm}
    for override in job.overrides:
        name, _, value = override.lstrip("+~").partition("=")
        group = name.split("@")[0]
        if job.method and part_of(name) in METHOD:
            continue
        if name not in _NOT_AN_ARM and group.split(".")[0] != "logger" and group not in arm:
            arm[name] = value
    rows = {name: job.choices.get(name.replace(".", "/"), values.get(name)) for name in OTHER_ROWS}
    return {name: value for name, value in arm.items() if name not in rows} | {
        name: value for name, value in rows.items() if value not in (None, False, "None", "right")
    }


def part_of(name: str) -> str:
    """The part of the config that an override, setting or choice belongs to: `model@reference.model` -> reference."""
    group, _, package = name.partition("@")
    return (package or group).split(".")[0]
