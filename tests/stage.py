"""Runs stages in this process from overrides, like the entry points but without a Hydra job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cft.cli.job import composed as inputs
from cft.runs.job import Job

CONF = Path(__file__).resolve().parent.parent / "conf"


def composed(stage: str, *overrides: str) -> Any:
    """The config that `cft <stage> <overrides>` would run with."""
    return inputs(stage, overrides)[0]


def job(stage: str, *overrides: str, folder: Path = Path("run")) -> Job:
    """The job of that command line, whether it is valid or not."""
    return inputs(stage, overrides, folder=folder, check=False)[1]


def asked(stage: str, *overrides: str, folder: Path = Path("run")) -> tuple[Any, Job]:
    """Config and job: the arguments of a stage function."""
    return inputs(stage, overrides, folder=folder)


def annotate(*overrides: str) -> Path:
    """The store's folder."""
    from cft.stages.annotate import annotate as run

    return run(*asked("annotate", *overrides))
