"""The pipeline stage (`cft/pipelines`): checks several stages together, then runs them one by one in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cft.config.build import ConfigError
from cft.config.schema import PipelineConfig
from cft.config.typed import plain
from cft.pipelines.check import planned
from cft.pipelines.plan import Planner, Settings, conf_dirs_of
from cft.pipelines.runner import Runner
from cft.pipelines.sequence import Continual
from cft.runs.job import Job


def pipeline(cfg: PipelineConfig, job: Job) -> Path:
    """Run all steps that are not done; returns the pipeline's folder."""
    settings = settings_of(cfg, job)
    steps, errors = planned(plain(cfg), settings)
    planner = Planner(settings, {})
    planner.steps = steps
    if errors or (errors := list(planner.missing())):
        raise ConfigError(*errors)
    if (continual := Continual.of(plain(cfg))) is not None:
        continual.write(settings.folder)
    Runner(settings=settings, isolated=cfg.isolated, flags=job.flags).run(steps)
    return settings.folder


def settings_of(cfg: Any, job: Job) -> Settings:
    return Settings(
        folder=job.folder,
        group=job.group,
        allowed=tuple(cfg.allow_targets),
        conf_dirs=conf_dirs_of(job.flags),
    )
