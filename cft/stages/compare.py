"""The compare stage: from problems to a table for a paper: annotation, learning-rate search, training, tests, report.

It is a pipeline (`cft/pipelines`) whose training runs are repeated for each arm, learning rate and seed
(`cft/pipelines/comparison.py`), after an estimate of its cost (`cft/pipelines/estimate.py`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cft.config.build import ConfigError
from cft.config.schema import CompareConfig
from cft.config.typed import plain
from cft.console import console
from cft.pipelines.clock import Clock
from cft.pipelines.comparison import Design, chosen_rate
from cft.pipelines.estimate import ESTIMATE, estimate
from cft.pipelines.plan import Planner, Step
from cft.pipelines.reporting import REPORT
from cft.pipelines.runner import Runner
from cft.runs.job import Job
from cft.stages.pipeline import settings_of

_WEIGHT_FOLDERS = ("checkpoints", "export", "export.adapter")


def compare(cfg: CompareConfig, job: Job) -> Path:
    """Run all steps that are not done; returns the folder of the comparison."""
    settings, design = settings_of(cfg, job), Design.of(plain(cfg))
    runner = Runner(settings=settings, isolated=cfg.isolated, flags=job.flags)
    planner = Planner(settings, cfg.shared)
    fixed = design.before(planner)
    searches = design.searches(planner) if len(design.rates) > 1 else {}
    searched = [step for steps in searches.values() for step in steps]
    if missing := [*planner.errors, *planner.missing()]:
        raise ConfigError(*missing)
    found = estimate(design, runner, cfg.shared, probe=cfg.probe_problems, keep=cfg.keep)
    found.show()
    if cfg.estimate_only:
        console.print(f"Nothing else was started (estimate_only=true): {settings.folder / ESTIMATE}", markup=False)
        return settings.folder
    names = [step.name for step in (*fixed, *searched)]
    clock = Clock(found.steps, to_do=[*names, *design.final_names(), REPORT])
    of = len(clock.to_do)
    runner.run([*fixed, *searched], of=of, after=lambda step: _remove_weights(step, keep=cfg.keep), clock=clock)
    rates = {arm: chosen_rate(steps) for arm, steps in searches.items()}
    rates = rates or dict.fromkeys(design.arms, next(iter(design.rates)))
    for arm, rate in rates.items():
        console.print(f"Learning rate of {arm}: {rate:g}", markup=False)
    finals = [*design.finals(planner, rates), *design.report(planner)]
    runner.run(
        finals,
        of=of,
        first=len(fixed) + len(searched) + 1,
        after=lambda step: _remove_weights(step, keep=cfg.keep, exports=cfg.keep == "exports"),
        clock=clock,
    )
    return settings.folder


def _remove_weights(step: Step, *, keep: str, exports: bool = False) -> None:
    """Remove the weights that `keep` does not include; results, logs and responses are kept."""
    if keep != "all" and step.stage == "train":
        for name in _WEIGHT_FOLDERS[:1] if exports else _WEIGHT_FOLDERS:
            shutil.rmtree(step.folder / name, ignore_errors=True)
