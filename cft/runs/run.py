"""A run folder: names of its files, its settings, and the rows it trains on (results: `cft/runs/results.py`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cft.config.build import ConfigError
from cft.config.saved import read_yaml, to_yaml
from cft.files import write_atomically, write_json
from cft.runs.job import Job

CONFIG = "config.yaml"
DATA = "data.json"
EXPORT = "export"
SEQUENCE = "sequence.json"  # of a pipeline over a sequence of data sets
ADAPTER = "export.adapter"  # with LoRA, beside the export, in which adapters are merged
NO_WEIGHTS = (
    f"neither a run folder of cft train or cft rl (with {EXPORT}/config.json) nor a Hugging Face model folder (with "
    "config.json). A run that was cut off has no export yet: cft train ... resume=<run folder>"
)
# Parts of a config that determine a trained model, and an untrained one.
TRAINED_BY = (
    *("model", "data", "optimizer", "schedule", "trainer", "callbacks", "prompt"),
    *("mask", "weighting", "loss", "router", "reference", "groups", "inputs"),
)
MEASURED_AS = ("model", "prompt")
# Keys in those parts that only concern paths or display.
_NO_SETTING = frozenset(
    (
        *("data.dir", "mask.annotations_dir"),
        *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps"),
    )
)


def weights_folder(checkpoint: str | Path) -> Path | None:
    """The Hugging Face model folder of a run, or the folder itself; None if neither is there."""
    path = Path(checkpoint).expanduser()
    return next((folder for folder in (path / EXPORT, path) if (folder / "config.json").is_file()), None)


def group_of(folder: Path) -> str:
    """The group of an earlier run: the name of its multirun, or its own."""
    return folder.parent.name if (folder.parent / "multirun.yaml").is_file() else folder.name


def settings_of(job: Job, parts: Sequence[str]) -> dict[str, Any]:
    """Every value of these parts by its dotted name, except those that follow the run's seed (`seed: ${seed}`)."""
    return {
        name: value
        for name, value in sorted(flat(job.config).items())
        if name.split(".")[0] in parts and name not in _NO_SETTING and name not in job.of_seed
    }


def identity_of(settings: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of the settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def follows_seed(written: Any) -> bool:
    """Whether a value, as written in yaml, depends on the run's seed."""
    return isinstance(written, str) and "${seed}" in written.replace(" ", "")


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a plain config by their dotted names."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {k: v for key, item in node.items() for k, v in flat(item, f"{prefix}.{key}".lstrip(".")).items()}


def save_config(folder: Path, job: Job) -> None:
    text = to_yaml(job.config)
    write_atomically(folder / CONFIG, lambda temporary: _write(temporary, text))


def saved_config(folder: Path) -> dict[str, Any]:
    """The config written by `save_config`, by dotted name."""
    return flat(read_yaml(folder / CONFIG))


def keep_rows(folder: Path, facts: dict[str, Any], *, source: Path, write: bool) -> None:
    """Record the rows that a run trains on; resuming it with other rows raises ConfigError.

    facts: from the data module. A run without such a record is accepted.
    """
    path = folder / DATA
    if not path.is_file():
        if write:
            write_json(path, {key: facts[key] for key in ("rows_sha256", "train_rows", "validation_rows")})
        return
    then = json.loads(path.read_text(encoding="utf-8"))
    if then["rows_sha256"] != facts["rows_sha256"]:
        raise ConfigError(
            f"resume={folder}: it began on other rows than {source} gives now: {_rows(then)} in {path}, "
            f"{_rows(facts)} now; it has grown or changed. Start a new run, or bring the old one back"
        )


def _rows(facts: dict[str, Any]) -> str:
    return f"{facts['train_rows']} + {facts['validation_rows']} rows (sha256 {facts['rows_sha256'][:12]})"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
