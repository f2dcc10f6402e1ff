"""Reads runs from their folders: results.json, the training log, and runs without results.

A run that diverged, was interrupted or is still running is named in a note, so that the mean over the finished runs is not
mistaken for the mean over all.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cft.errors import UserError
from cft.evaluation.intervals import Interval
from cft.runs.results import RESULTS, RunResults
from cft.runs.run import CONFIG

ACCURACY = "eval/accuracy"
GROUPS = ("loss_critical", "loss_other", "entropy_critical", "entropy_other")
DIVERGED = "nonfinite_batch.json"  # cft.training.callbacks.guards.REPORT, without torch behind it
_NAMED = 12
# How and on what a run was measured, and where and how long it ran, does not identify its arm.
_CONDITIONS = frozenset(
    (
        *("benchmark", "split", "limit", "checkpoint", "engine", "verifier", "verify", "evaluation", "logger", "hydra"),
        *("num_samples", "temperature", "top_p", "max_new_tokens", "trainer.enable_progress_bar", "device"),
        "interruption",
    )
)


class ReportError(UserError, ValueError):
    """Results that cannot be compared; the message names the file or the arms, and the remedy."""


@dataclass(frozen=True, slots=True)
class Run:
    """One results.json.

    Args:
        folder: Run folder.
        results: As recorded.
        arm: Entry `arm` of the results, without the conditions of measurement.
        metrics: On the problems of the comparison, and val/ metrics at the best epoch.
        per_problem: On the problems of the comparison.
        logs: Folder of the training's metrics.csv: the run folder, unless it evaluates the checkpoint of another run.
    """

    folder: Path
    results: RunResults
    arm: dict[str, Any]
    metrics: dict[str, Interval]
    per_problem: dict[str, list[Any]]
    logs: Path

    @property
    def seed(self) -> int:
        return self.results.seed

    @property
    def measured_on(self) -> tuple[str, str]:
        return self.results.benchmark, self.results.split

    @property
    def ids(self) -> list[Any]:
        return self.per_problem.get("id", [])

    @property
    def validation_score(self) -> float | None:
        """Score that chose the best epoch; None if it was not finite or not recorded."""
        value = (self.results.best_validation or {}).get("value")
        return None if value is None else float(value)


class Runs(list[Run]):
    """Runs, and notes on missing ones."""

    def __init__(self, runs: Iterable[Run] = (), *, notes: Sequence[str] = ()) -> None:
        super().__init__(runs)
        self.notes = tuple(notes)


def collect(folders: Sequence[Path]) -> Runs:
    """All results below the folders, each once, in the order of their paths, with notes on runs without results.

    Raises:
        ReportError: A folder does not exist, or no results lie below.
        ResultsError: A file is damaged.
    """
    paths: dict[Path, None] = {}
    for folder in folders:
        if not folder.exists():
            raise ReportError(f"{folder}: no such folder; expected run folders of cft train or cft evaluate")
        found = [folder] if folder.is_file() else sorted(folder.rglob(RESULTS))
        paths |= dict.fromkeys(path.resolve() for path in found)
    notes = notes_on(folders)
    if not paths:
        where = ", ".join(map(str, folders))
        message = f"{where}: no {RESULTS} below; it is written when a run of cft train or cft evaluate ends"
        raise ReportError(" ".join([f"{message}.", *notes]) if notes else message)
    return Runs(map(_at_best, _with_trainings([_read(path) for path in paths])), notes=notes)


def intervals(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, Interval]:
    """Metrics that have a value: null means "not defined", such as the entropy of empty responses."""
    known = {name: [entry.get(field) for field in ("value", "low", "high")] for name, entry in metrics.items()}
    return {
        name: Interval(*(float(v) for v in values if v is not None))
        for name, values in known.items()
        if None not in values
    }


def training_log(folder: Path) -> pd.DataFrame:
    """metrics.csv as numbers, NaN for an empty cell, a half-written line or a value that is not finite; empty without one."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return pd.DataFrame()
    with path.open(newline="", encoding="utf-8", errors="replace") as handle:
        return pd.DataFrame([{k: v for k, v in row.items() if k} for row in csv.DictReader(handle)]).map(_number)


def _number(text: object) -> float:
    try:
        value = float(text) if isinstance(text, str) and text else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _read(path: Path) -> Run:
    results = RunResults.read(path)
    arm = {name: value for name, value in results.arm.items() if not _is_condition(name)}
    return Run(path.parent, results, arm, intervals(results.metrics), results.per_problem, path.parent)


def _is_condition(name: str) -> bool:
    return name in _CONDITIONS or name.split(".")[0].split("/")[0] in _CONDITIONS


def _with_trainings(runs: Sequence[Run]) -> list[Run]:
    """Gives evaluations of a checkpoint the log and missing facts of its training, if that is among the runs."""
    trained: dict[tuple[Any, ...], Run] = {
        (run.results.run, run.results.identity, run.seed): run
        for run in runs
        if run.results.stage in ("train", "rl") and run.results.identity
    }
    found = []
    for run in runs:
        links = run.results.lineage.get("inputs", ()) if run.results.stage == "evaluate" else ()
        origins = [link.get("came_from") or {} for link in links if link.get("kind") == "checkpoint"]
        keys = [(origin.get("run"), origin.get("identity"), origin.get("seed")) for origin in origins]
        if (training := next((trained[key] for key in keys if key in trained), None)) is not None:
            facts = {k: v for k, v in training.results.training_facts().items() if getattr(run.results, k) is None}
            run = replace(run, results=replace(run.results, **facts), logs=training.folder)
        found.append(run)
    return found


def _at_best(run: Run) -> Run:
    """The run with its values on validation rows at the best epoch, if it was evaluated."""
    log = training_log(run.logs) if run.metrics and run.results.best_epoch is not None else pd.DataFrame()
    if "epoch" not in log:
        return run
    columns = [name for name in (f"val/{group}" for group in GROUPS) if name in log]
    last = log.loc[log["epoch"] == run.results.best_epoch, columns].ffill().tail(1)
    measured = {name: float(last[name].iloc[0]) for name in columns if last[name].notna().any()}
    return replace(run, metrics=run.metrics | {name: Interval(v, v, v) for name, v in measured.items()})


# ---- runs without results


def unfinished(folders: Sequence[Path]) -> list[Path]:
    """Folders of trainings and multirun jobs without results.json."""
    found: dict[Path, None] = {}
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.rglob(CONFIG))):
        # Hydra writes its copy to .hydra before the job starts; alone it may belong to a command that was refused.
        by_hydra = path.parent.name == ".hydra"
        run = path.parent.parent if by_hydra else path.parent
        in_multirun = (run.parent / "multirun.yaml").is_file()
        if not (run / RESULTS).is_file() and (in_multirun or not by_hydra) and _is_run(path):
            found[run.resolve()] = None
    return list(found)


def notes_on(folders: Sequence[Path]) -> list[str]:
    """Notes for the reader; none if every run has results."""
    runs = unfinished(folders)
    diverged = [run for run in runs if (run / DIVERGED).is_file()]
    others = [run for run in runs if run not in diverged]
    notes = [
        (diverged, "diverged (loss or gradient not finite)"),
        (others, f"no {RESULTS}: cut off, failed, or still running"),
    ]
    return [
        f"Not in the means: {len(group)} {'run' if len(group) == 1 else 'runs'} ({_names(group)}), {why}."
        for group, why in notes
        if group
    ]


def _names(runs: Sequence[Path]) -> str:
    """Names of runs; jobs of a multirun are numbers, prefixed with its name."""
    names = [f"{run.parent.name}/{run.name}" for run in runs[:_NAMED]]
    return ", ".join(names) + (f" and {len(runs) - _NAMED} more" if len(runs) > _NAMED else "")


def _is_run(path: Path) -> bool:
    """Whether a config.yaml was written by cft train or cft evaluate; loggers write files of that name, too."""
    try:
        config: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    if not isinstance(config, dict) or not isinstance(config.get("seed"), int):
        return False
    return "optimizer" in config or {"checkpoint", "num_samples"} <= config.keys()
