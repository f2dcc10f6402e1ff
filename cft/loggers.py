"""Where metrics go: CSV always, Weights & Biases by `logger=wandb`. Builders named in conf/logger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


def csv_logger(run: RunFacts) -> Logger:
    """metrics.csv in the run folder, one row a logged step."""
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(run.folder, name="", version="", flush_logs_every_n_steps=10)


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
    the configuration; command line, code and machine facts are not uploaded, since they may hold secrets."""
    import os

    import wandb
    from lightning.pytorch.loggers import WandbLogger

    settings = wandb.Settings(
        x_disable_meta=True,
        x_disable_machine_info=True,
        disable_git=True,
        disable_code=True,
        save_code=False,
        console="off",
    )
    logger = WandbLogger(
        name=run.name,
        save_dir=run.folder,
        offline=mode == "offline" or os.environ.get("WANDB_MODE") == "offline",
        project=project,
        entity=entity or None,
        group=group or run.group,
        job_type=run.job_type,
        tags=[*tags, *run.tags],
        config=run.config,
        settings=settings,
    )
    _ = logger.experiment  # open the run now, so that a job that fails early has one too
    return logger


class RunFacts:
    """What a logger is told about the run. config: plain and redacted."""

    def __init__(
        self, folder: Path, *, name: str, group: str, job_type: str, tags: Sequence[str], config: dict[str, Any]
    ) -> None:
        self.folder = folder
        self.name = name
        self.group = group
        self.job_type = job_type
        self.tags = list(tags)
        self.config = config
