"""State of a run at its start: finished, to be resumed from a checkpoint of TRL, or new."""

from __future__ import annotations

import re
from pathlib import Path

from cft.config.build import ConfigError
from cft.runs.job import Job
from cft.runs.results import RunResults
from cft.runs.run import CONFIG, flat, saved_config

CHECKPOINTS = "checkpoints"
_FREE = ("resume", "interruption", "allow_targets", "logger", "device", "save_every_n_steps", "verify.workers")


def finished(folder: Path, job: Job) -> RunResults | None:
    results = RunResults.find(folder)
    if results is None:
        return None
    if differing := _differing(folder, job):
        raise ConfigError(
            f"hydra.run.dir={folder}: holds a run of another configuration that has finished ({differing}); choose another "
            "folder"
        )
    return results


def newest(folder: Path, job: Job, *, resume: str) -> Path | None:
    """The newest checkpoint of a run folder, None if there is none. resume: the setting `resume`, "" if not set."""
    found = [path for path in (folder / CHECKPOINTS).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    # The trainer state is written last, except for the random state.
    whole = [path for path in found if (path / "trainer_state.json").is_file()]
    if resume and not whole:
        raise ConfigError(f"resume={folder}: no checkpoint; the run ended before its first checkpoint, start it again")
    if whole and (differing := _differing(folder, job)):
        raise ConfigError(
            f"{f'resume={folder}' if resume else f'hydra.run.dir={folder}'}: that run has another configuration "
            f"({differing}); repeat its arguments, or choose another folder"
        )
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _differing(folder: Path, job: Job) -> str:
    if not (folder / CONFIG).is_file():
        return f"there is no {CONFIG}"
    then, now = saved_config(folder), flat(job.config)
    keys = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
    return "; ".join(
        f"{key}: then {then.get(key)!r}, now {now.get(key)!r}"
        for key in keys
        if not any(key == free or key.startswith(f"{free}.") for free in _FREE)
    )
