"""Where metrics go: CSV always, Weights & Biases by `logger=wandb`. Builders named in conf/logger."""

from __future__ import annotations

import csv
import os
import secrets
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

INIT_TIMEOUT_S = 20.0  # then the run goes on offline
FINISH_TIMEOUT_S = 120.0  # then what is not uploaded yet stays on disk, for `wandb sync`


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a logger is told about the run.

    config: plain and redacted. resumed_at: optimizer steps done when this part of the run began, 0 = a new run.
    """

    folder: Path
    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    resumed_at: int = 0


def csv_logger(run: RunFacts) -> Logger:
    """metrics.csv in the run folder, one row a logged step; a resumed run goes on with the rows it had."""
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(run.folder, name="", version="", flush_logs_every_n_steps=10)
    path = run.folder / "metrics.csv"
    header, rows = _rows_before(path, step=run.resumed_at)
    with warnings.catch_warnings():
        # Lightning warns that it deletes metrics.csv, which is why the rows were read first.
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        experiment = logger.experiment
    if rows:
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, fieldnames=header)
            writer.writeheader()
            writer.writerows(rows)
        experiment.metrics_keys = header  # pyright: ignore[reportAttributeAccessIssue]
    return logger


def _rows_before(path: Path, *, step: int) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of the steps before `step`: later ones are run again."""
    if step == 0 or not path.is_file():
        return [], []
    with path.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        rows = [row for row in reader if row.get("step", "").isdecimal() and int(row["step"]) < step]
        return list(reader.fieldnames or []), rows


def wandb_logger(
    run: RunFacts,
    *,
    project: str,
    entity: str,
    group: str,
    tags: Sequence[str],
    mode: Literal["online", "offline"],
) -> Logger:
    """One W&B run per job. group: "" = one per multirun. The key comes from the environment (WANDB_API_KEY), never from
    the configuration; command line, code and machine facts are not uploaded, since they may hold secrets.

    A server that cannot be reached, or that refuses, makes the run offline: training goes on.
    """
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    run_id = _run_id(run)

    def opened(mode: str) -> Logger:
        logger = WandbLogger(
            name=run.name,
            save_dir=run.folder,
            id=run_id,
            project=project,
            entity=entity or None,
            group=group or run.group,
            job_type=run.job_type,
            tags=[*tags, *run.tags],
            config=run.config,
            # Not by `offline=`, which sets WANDB_MODE for all later jobs of the process.
            mode=mode,
            settings=wandb.Settings(
                x_disable_meta=True,
                x_disable_machine_info=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
                console="off",
                silent=True,
                init_timeout=INIT_TIMEOUT_S,
                login_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
            ),
        )
        logger._wandb_init.pop("anonymous")  # W&B warns of an option that Lightning always passes
        _ = logger.experiment  # open the run now, so that a job that fails early has one too
        return logger

    mode_wanted = mode if mode == "offline" else os.environ.get("WANDB_MODE") or mode
    try:
        return opened(mode_wanted)
    except wandb.Error as error:
        warnings.warn(
            f"W&B is out of reach ({' '.join(str(error).split())}). The run goes on offline; upload it later with: "
            f"wandb sync {run.folder / 'wandb'}/offline-run-*",
            stacklevel=2,
        )
        wandb.teardown()  # its service still holds the run id
        for half_open in (run.folder / "wandb").glob("run-*"):
            shutil.rmtree(half_open, ignore_errors=True)
        return opened("offline")


def _run_id(run: RunFacts) -> str:
    """A resumed run goes on in the W&B run that it began."""
    from lightning.pytorch.utilities import rank_zero_only

    path = run.folder / "wandb_id"
    if run.resumed_at and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    new = secrets.token_hex(4)
    if getattr(rank_zero_only, "rank", 0) == 0:
        path.write_text(new + "\n", encoding="utf-8")
    return new


def close_loggers(*, failed: bool) -> None:
    """End the W&B run, if one is open: the jobs of a multirun share a process, and the next would write into it."""
    if "wandb" in sys.modules:
        import wandb

        wandb.finish(exit_code=int(failed))
