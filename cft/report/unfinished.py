"""Runs that left no results: diverged, cut off, or still running. A report says which they are, so that nobody takes the
mean over those that survived for the mean over all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cft.runs.results import RESULTS
from cft.runs.run import CONFIG

DIVERGED = "nonfinite_batch.json"  # cft.training.callbacks.guards.REPORT, without torch behind it
_NAMED = 12


def unfinished(folders: Sequence[Path]) -> list[Path]:
    """Folders of trainings, and of jobs of a multirun, that have no results.json."""
    found: dict[Path, None] = {}
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.rglob(CONFIG))):
        # Hydra keeps its copy in .hydra before the job begins. Alone it may be of a command that was refused.
        by_hydra = path.parent.name == ".hydra"
        run = path.parent.parent if by_hydra else path.parent
        in_multirun = (run.parent / "multirun.yaml").is_file()
        if not (run / RESULTS).is_file() and (in_multirun or not by_hydra) and _is_run(path):
            found[run.resolve()] = None
    return list(found)


def notes_on(folders: Sequence[Path]) -> list[str]:
    """What a reader must know of them; nothing where every run has results."""
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
    """Jobs of a multirun are numbers: its name stands before them."""
    names = [f"{run.parent.name}/{run.name}" for run in runs[:_NAMED]]
    return ", ".join(names) + (f" and {len(runs) - _NAMED} more" if len(runs) > _NAMED else "")


def _is_run(path: Path) -> bool:
    """Whether a config.yaml is one of cft train or cft evaluate; loggers write files of that name too."""
    try:
        config: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    if not isinstance(config, dict) or not isinstance(config.get("seed"), int):
        return False
    return "optimizer" in config or {"checkpoint", "num_samples"} <= config.keys()
