"""Decides how a run starts: it has already finished, it resumes from a checkpoint of TRL, or it is new."""

from __future__ import annotations

import re
from pathlib import Path

from cft.config.build import ConfigError
from cft.runs.job import Job
from cft.runs.results import RunResults
from cft.runs.run import CONFIG, flat, saved_config

CHECKPOINTS = "checkpoints"
_MAY_DIFFER = ("resume", "interruption", "allow_targets", "logger", "device", "save_every_n_steps", "verify.workers")


def finished(folder: Path, job: Job) -> RunResults | None:
    """Results of a finished run in the folder. Raises ConfigError if that run had another configuration."""
    results = RunResults.find(folder)
    if results is None:
        return None
    if differing := _differing(folder, job):
        raise ConfigError(
            f"hydra.run.dir={folder}: holds a finished run of another configuration ({differing}); choose another folder"
        )
    return results


def newest(folder: Path, job: Job, *, resume: str) -> Path | None:
    """The newest checkpoint to resume from, None if there is none.

    Args:
        folder: The run folder.
        job: The current job, whose configuration must match that of the folder.
        resume: The value of `resume`; "" = the folder is that of an earlier run of the same job.

    Raises:
        ConfigError: `resume` is set and there is no checkpoint, or the configurations differ.
    """
    found = [path for path in (folder / CHECKPOINTS).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    # TRL writes only the random state after trainer_state.json.
    complete = [path for path in found if (path / "trainer_state.json").is_file()]
    if resume and not complete:
        raise ConfigError(
            f"resume={folder}: no checkpoint; the run ended before it wrote its first one, start it again"
        )
    if complete and (differing := _differing(folder, job)):
        raise ConfigError(
            f"{f'resume={folder}' if resume else f'hydra.run.dir={folder}'}: that run had another configuration "
            f"({differing}); repeat its arguments, or choose another folder"
        )
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _differing(folder: Path, job: Job) -> str:
    if not (folder / CONFIG).is_file():
        return f"there is no {CONFIG}"
    then, now = saved_config(folder), flat(job.config)
    keys = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
    return "; ".join(
        f"{key}: {then.get(key)!r} in that run, now {now.get(key)!r}"
        for key in keys
        if not any(key == name or key.startswith(f"{name}.") for name in _MAY_DIFFER)
    )
