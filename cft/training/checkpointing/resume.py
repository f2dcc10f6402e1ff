"""Chooses where a training run starts: in a new folder, or at the last checkpoint of a run with the same configuration.

resume=<run folder> resumes from the newest checkpoint in that folder, which must be undamaged. resume=auto looks for runs of
the same configuration in the parent of this run's folder (in a multirun: in all multiruns beside this one). It skips damaged
checkpoints with a message, and starts a new run if it finds none, so a cluster can repeat the same command.

A multirun with the folder of an earlier one (hydra.sweep.dir) resumes without `resume`: jobs with results are skipped, the
interrupted job is resumed, and jobs without a run in the folder start one, whatever their job numbers are.

A run is finished if its results.json is for the requested numbers of epochs and steps. config.yaml cannot show this, since it
holds the configuration that was started last. A new run in a folder is refused if it would overwrite an earlier run. Nothing
is written before all checks have passed (`begin`); then results of fewer epochs or steps are renamed.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cft import run_log
from cft.config.build import ConfigError
from cft.console import console
from cft.files import writing_errors
from cft.runs.job import Job
from cft.runs.results import RESULTS, RunResults
from cft.runs.run import ADAPTER, CONFIG, DATA, EXPORT, flat, keep_rows, save_config, saved_config
from cft.training.checkpointing.checkpoints import CHECKPOINTS, newest_checkpoint, newest_sound_checkpoint, set_aside
from cft.training.checkpointing.position import Position

AUTO = "auto"
SAMPLES = "samples.parquet"
# Keys that may differ between a run and its continuation. _SHARES: how rows are distributed; see `require_same_steps`.
_FREE = (
    "resume",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.enable_progress_bar",
    "allow_targets",
    "annotations_dir",
)
_SHARES = ("trainer.devices", "trainer.num_nodes", "trainer.accumulate_grad_batches", "data.batch_size")
_FREE_BELOW = ("trainer.strategy", "interruption", "callbacks.last")


@dataclass(frozen=True, slots=True)
class Start:
    """Where a training run starts.

    Args:
        folder: the run folder.
        checkpoint: the checkpoint to resume from; None for a new run.
        finished: whether the run has already finished.
    """

    folder: Path
    checkpoint: Path | None = None
    finished: bool = False


def start_of(job: Job, *, resume: str) -> Start:
    """Choose where a job starts.

    Args:
        job: the job.
        resume: a run folder, AUTO, or "" for a new run.

    Raises:
        ConfigError: the run in the folder has another configuration, or a new run would overwrite an earlier one.
        CheckpointError: the checkpoint to resume from is missing or damaged.
    """
    if not resume:
        return _of_same_sweep(job) if job.multirun else _new_run(job)
    if resume == AUTO:
        return _newest_of_same_config(job)
    folder = Path(resume)
    _require_same_config(folder, job)
    if _is_finished(folder, job):
        console.print(f"{folder} has finished; nothing to do")
        return Start(folder, finished=True)
    return Start(folder, newest_checkpoint(folder / CHECKPOINTS))


def begin(start: Start, job: Job, facts: dict[str, Any], *, source: Path) -> None:
    """Prepare the run folder for the training that begins now. Rank 0 calls it, after all other checks.

    Args:
        start: where the run starts.
        job: the job.
        facts: facts of the data module.
        source: path of the data source.

    Raises:
        ConfigError: the rows of a resumed run have changed; nothing was written.
    """
    folder = start.folder
    if start.checkpoint is None:
        (folder / DATA).unlink(missing_ok=True)
    keep_rows(folder, facts, source=source, write=True)
    _set_results_aside(folder)
    save_config(folder, job)
    run_log.write_to(folder)
    set_aside(folder / CHECKPOINTS, start=start.checkpoint)


def require_steps_left(position: Position, *, max_epochs: int, max_steps: int) -> None:
    """Raises ConfigError if the run to resume has already done more epochs or steps than requested."""
    done = position.epoch + int(position.next == "epoch" or position.epoch_steps > 0)
    if 0 <= max_epochs < done:
        raise ConfigError(
            f"resume: that run is already in epoch {done}, and trainer.max_epochs={max_epochs} is lower; set "
            f"trainer.max_epochs={done} or more, or omit resume to start a new run"
        )
    if 0 <= max_steps < position.steps:
        raise ConfigError(
            f"resume: that run has already done {position.steps} optimizer steps, and trainer.max_steps={max_steps} is lower; "
            f"set trainer.max_steps={position.steps} or more, or omit resume to start a new run"
        )


def require_same_steps(position: Position, *, rows_per_step: int) -> None:
    """Raises ConfigError if the optimizer steps of the resumed run would have another number of rows."""
    if position.rows_per_step != rows_per_step:
        raise ConfigError(
            f"resume: an optimizer step of that run has {position.rows_per_step} rows (data.batch_size * "
            f"trainer.accumulate_grad_batches * processes), but here it would have {rows_per_step}; change "
            "trainer.accumulate_grad_batches or data.batch_size so that the product stays the same"
        )


def _newest_of_same_config(job: Job) -> Start:
    beside = job.folder.parent.parent.glob("*/*") if job.multirun else job.folder.parent.glob("*")
    same = [folder for folder in beside if (folder / CONFIG).is_file() and not _differing(folder, job)]
    for folder in same:
        if _is_finished(folder, job):
            console.print(f"resume=auto: {folder} has finished; nothing to do")
            return Start(folder, finished=True)
    found = []
    for folder in same:
        if any(0 <= now < then for then, now in zip(_finished_at(folder) or (), _requested(job), strict=False)):
            continue  # it has trained for more epochs or steps than requested
        checkpoint = newest_sound_checkpoint(folder / CHECKPOINTS, skipped=_print_skipped)
        if checkpoint is not None:
            found.append((checkpoint.stat().st_mtime_ns, folder, checkpoint))
    if not found:
        console.print(
            f"resume=auto: no run of this configuration to resume from under {job.folder.parent}; starting a new one"
        )
        return _new_run(job)
    _, folder, checkpoint = max(found)
    console.print(f"resume=auto: resuming {folder} from {checkpoint.name}")
    return Start(folder, checkpoint)


def _of_same_sweep(job: Job) -> Start:
    runs = [path.parent for path in sorted(job.folder.parent.glob(f"*/{CONFIG}"))]
    folder = next((run for run in runs if not _differing(run, job)), None)
    if folder is None:
        return _new_run(job)
    if _is_finished(folder, job):
        console.print(f"{folder} has finished; nothing to do")
        return Start(folder, finished=True)
    checkpoint = newest_sound_checkpoint(folder / CHECKPOINTS, skipped=_print_skipped)
    if checkpoint is not None:
        console.print(f"Resuming {folder} from {checkpoint.name}")
    return Start(folder, checkpoint)


def _new_run(job: Job) -> Start:
    """A new run in this job's folder. Raises ConfigError if that would overwrite an earlier run."""
    folder = job.folder
    if not (folder / CONFIG).is_file():
        return Start(folder)
    if job.multirun:  # if the sweep has changed, another job's run may have this job's number
        return Start(folder.with_name(f"{folder.name}-{job.digest}"))
    if (folder / RESULTS).is_file():
        found = "a run that has finished"
    elif differing := _differing(folder, job):
        found = "a run of another configuration (" + "; ".join(_lines(differing)) + ")"
    elif newest_sound_checkpoint(folder / CHECKPOINTS, skipped=_print_skipped) is not None:
        found = "a run that has not finished"
    else:
        return Start(folder)
    raise ConfigError(
        f"hydra.run.dir={folder}: holds {found}, which a new run would replace; choose another hydra.run.dir, or resume "
        f"that run: resume={folder}, with its own arguments (trainer.max_epochs and trainer.max_steps may be higher)"
    )


def _print_skipped(path: Path, damage: str) -> None:
    console.print(f"{path} is damaged ({damage}) and is skipped")


def _is_finished(folder: Path, job: Job) -> bool:
    return _finished_at(folder) == _requested(job)


def _requested(job: Job) -> tuple[int, int]:
    """(trainer.max_epochs, trainer.max_steps): training ends at whichever is reached first; -1 = no limit."""
    trainer = job.config["trainer"]
    return trainer["max_epochs"], trainer.get("max_steps", -1)


def _finished_at(folder: Path) -> tuple[int, int] | None:
    """(max_epochs, max_steps) of the results in `folder`, None if there are no results."""
    if (results := RunResults.find(folder)) is None:
        return None
    settings = results.settings
    return settings["trainer.max_epochs"], settings.get("trainer.max_steps", -1)


def _set_results_aside(folder: Path) -> None:
    """Rename the results of an earlier part of the run, e.g., results.json to results.json.step-12."""
    path = folder / RESULTS
    with writing_errors(path):
        if not path.is_file():  # an export without results is incomplete
            for name in (EXPORT, ADAPTER):
                shutil.rmtree(folder / name, ignore_errors=True)
            return
        steps = (RunResults.read(path).budget or {})["steps"]
        for name in (
            EXPORT,
            ADAPTER,
            SAMPLES,
            RESULTS,
        ):  # RESULTS last: their presence means that there is something to rename
            if (folder / name).exists():
                aside = folder / f"{name}.step-{steps}"
                if aside.is_dir():
                    shutil.rmtree(aside)
                (folder / name).rename(aside)


def finished_accuracy(folder: Path) -> float:
    """Accuracy of a finished run."""
    return RunResults.read(folder / RESULTS).accuracy


def _require_same_config(folder: Path, job: Job) -> None:
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(
            f"resume={folder}: {path} does not exist; expected the folder of a run that cft train started"
        )
    differing = _differing(folder, job)
    if differing:
        lines = "\n".join(f"  {line}" for line in _lines(differing))
        raise ConfigError(f"resume={folder}: that run has another configuration; repeat its arguments:\n{lines}")


def _lines(differing: dict[str, tuple[object, object]]) -> list[str]:
    return [f"{key}: then {then!r}, now {now!r}" for key, (then, now) in differing.items()]


def _differing(folder: Path, job: Job) -> dict[str, tuple[object, object]]:
    """Keys that differ but must not, between a run and its continuation: key -> (then, now)."""
    then, now = saved_config(folder), flat(job.config)
    keys = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
    return {key: (then.get(key), now.get(key)) for key in keys if not _is_free(key)}


def _is_free(key: str) -> bool:
    return key in (*_FREE, *_SHARES) or any(key == part or key.startswith(f"{part}.") for part in _FREE_BELOW)
