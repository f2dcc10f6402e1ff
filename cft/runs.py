"""A run's folder and facts: where its files go, which arm of a comparison it is, and the results it leaves behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cft.config import redacted
from cft.files import write_atomically, write_json
from cft.metrics import Interval

RESULTS = "results.json"
CONFIG = "config.yaml"
EXPORT = "export"
# Overrides that say where a run lives or which repetition it is, not what it does.
_NOT_AN_ARM = ("seed", "resume", "annotations_dir", "data.dir", "allow_targets", "experiment")


@dataclass(frozen=True, slots=True)
class RunContext:
    """folder: the run's own. group: the multirun's name, or the run's own. choices: config group -> option."""

    folder: Path
    group: str
    choices: dict[str, str]
    overrides: tuple[str, ...]
    multirun: bool


def run_context() -> RunContext:
    """Of the Hydra job that is running."""
    hydra = HydraConfig.get()
    multirun = hydra.mode == RunMode.MULTIRUN
    folder = Path(hydra.runtime.output_dir)
    group = Path(hydra.sweep.dir).name if multirun else folder.name
    choices = {str(k): str(v) for k, v in hydra.runtime.choices.items()}
    return RunContext(folder, group, choices, tuple(hydra.overrides.task), multirun)


def group_of(folder: Path) -> str:
    """The group of a run made before: its multirun's name, or its own."""
    return folder.parent.name if (folder.parent / "multirun.yaml").is_file() else folder.name


def arm_of(cfg: DictConfig, context: RunContext, keys: Sequence[str]) -> dict[str, Any]:
    """What tells this run from others but for the seed: the named groups and values, and every further override."""
    arm: dict[str, Any] = {}
    for key in keys:
        choice = context.choices.get(key)
        arm[key] = choice if choice is not None else OmegaConf.select(cfg, key)
    for override in context.overrides:
        name, _, value = override.lstrip("+~").partition("=")
        group = name.split("@")[0]
        if name not in _NOT_AN_ARM and group not in arm:
            arm[name] = value
    return arm


def save_config(folder: Path, cfg: DictConfig) -> None:
    text = OmegaConf.to_yaml(OmegaConf.create(redacted(cfg)))
    write_atomically(folder / CONFIG, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """results.json of a run (keys: docs in `cft/report/compare.py`). NaN becomes null: JSON has no NaN."""
    write_json(folder / RESULTS, _without_nan(results))


def as_metrics(intervals: dict[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: interval.as_dict() for name, interval in intervals.items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
