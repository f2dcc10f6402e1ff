"""Runs after the last job of a multirun (a Hydra callback, named in conf/train.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class CompareJobs(Callback):
    """Compares the jobs: a table, and comparison.csv, figures and report.html in the multirun's folder."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from cft.report.multirun import compare_jobs  # heavy, so not at the start of every job

        compare_jobs(Path(config.hydra.sweep.dir))
