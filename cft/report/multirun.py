"""The comparison of a multirun's jobs, made when the last one has ended (a Hydra callback, named in conf/train.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from cft.errors import UserError
from cft.report.text import printable


class CompareJobs(Callback):
    """Prints the table and writes comparison.csv, figures and report.html into the multirun's folder."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        # Tables and figures: only now, not at the start of every job.
        from cft.report.build import build_report
        from cft.report.compare import compare
        from cft.report.read import collect
        from cft.report.tables import print_tables

        folder = Path(config.hydra.sweep.dir)
        try:
            comparisons = compare(collect([folder]))
        except UserError as error:
            print(printable(f"No comparison: {error}"))
            return
        print_tables(comparisons)
        page = build_report(folder, comparisons=comparisons, evidence=None, title=folder.name)
        print(f"Comparison of {sum(len(c.runs) for c in comparisons)} runs: {page}")
