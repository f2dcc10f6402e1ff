"""results.json of a run of cft train, cft rl or cft evaluate: its fields, and writing and reading it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from cft.errors import UserError
from cft.evaluation.metrics import Interval
from cft.files import write_json

RESULTS = "results.json"
SCHEMA = 1
_RUN_AGAIN = "Restore it from a copy, or delete it and run the job again"
# Facts of the training that every evaluation of its checkpoint repeats, to recognize comparable trainings.
TRAINING_FACTS = ("budget", "data", "eligible_fraction", "train_seconds", "best_epoch", "best_validation")


class ResultsError(UserError, ValueError):
    """A results.json that is missing or cannot be read; the message names it and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResults:
    """The results of a run: each field is a key of results.json, omitted if the value is None.

    Args:
        stage: Name of the stage.
        run: Name of the run folder.
        arm: Everything that distinguishes the run from others except the seed: every option of the method and every value
            that differs from its option (`cft/runs/arm.py`).
        identity: Hash of the settings.
        settings: Every value that the weights depend on, by its dotted name in the config.
        seed: Of the training; for an evaluation of a published model, of the evaluation.
        benchmark: Name, "" if the run was not tested.
        split: Of the benchmark.
        problems: Number of problems that were run.
        not_run: Ids of problems whose prompt leaves no room in the model's context, which are in no rate; for a suite, by
            benchmark.
        short_of_room: Ids of problems run with room for fewer tokens than requested.
        metrics: Name -> {"value", "low", "high"}, the 95 % interval over problems; null means "not defined".
        per_problem: Columns of one length: "id", "correct" (0 or 1), further metrics by name.
        verdicts: Greedy responses by outcome.
        evaluation: How responses were decoded, and "verifier", the fingerprint of the verifier (for a suite, by benchmark).
        problems_sha256: Of the problems' text and answers.
        seconds: Of the evaluation.
        suite: For several benchmarks: name -> {"problems", "metrics"}.
        lineage: The command and what the run was made from (`cft/runs/lineage.py`).
        validation: For a training: "problems", "not_run", "short_of_room" of its validation.
        best_epoch: Epoch whose weights were exported, from 0.
        best_validation: {"metric", "value"} that chose it.
        train_seconds: Duration of training, including the time before an interruption.
        spent: Seconds of that on the first micro-batch, on the later ones, and on validation.
        eligible_fraction: Fraction of the response tokens that carry loss.
        calibration: Values that a loss measured on the rows before training, and the coefficient of the router's loss.
        data: The annotation and the rows used from it.
        budget: {"epochs", "steps", "rows_per_step"}.
        starts_as_reference: Whether training started from the model of the stored reference.
        base: {"metrics", "per_problem", "verdicts"} of the model before training.
    """

    stage: Literal["train", "rl", "evaluate"]
    run: str
    arm: dict[str, Any]
    seed: int
    benchmark: str
    split: str
    metrics: dict[str, dict[str, float]]
    per_problem: dict[str, list[Any]]
    schema: int = SCHEMA
    identity: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    problems: int = 0
    not_run: list[str] | dict[str, list[str]] = field(default_factory=list)
    short_of_room: list[str] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    problems_sha256: str | None = None
    seconds: float | None = None
    suite: dict[str, dict[str, Any]] | None = None
    validation: dict[str, Any] | None = None
    best_epoch: int | None = None
    best_validation: dict[str, Any] | None = None
    train_seconds: float | None = None
    spent: dict[str, float] | None = None
    eligible_fraction: float | None = None
    calibration: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    budget: dict[str, Any] | None = None
    starts_as_reference: bool | None = None
    base: dict[str, Any] | None = None

    @property
    def accuracy(self) -> float:
        """Greedy accuracy, 0-1; NaN where nothing was evaluated."""
        value = self.metrics.get("eval/accuracy", {}).get("value")
        return float("nan") if value is None else float(value)

    def training_facts(self) -> dict[str, Any]:
        """The fields that an evaluation of the trained model copies."""
        return {name: getattr(self, name) for name in TRAINING_FACTS if getattr(self, name) is not None}

    def as_dict(self) -> dict[str, Any]:
        """The content of results.json; NaN becomes null, since JSON has no NaN."""
        values = ((entry.name, getattr(self, entry.name)) for entry in fields(self))
        return {name: without_nan(value) for name, value in values if value is not None}

    def write(self, folder: Path) -> None:
        write_json(folder / RESULTS, self.as_dict())

    @classmethod
    def read(cls, path: Path) -> RunResults:
        """path: of the file. Raises ResultsError."""
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise ResultsError(
                f"{path}: no such file; it is written when a run of cft train or cft evaluate ends"
            ) from error
        except ValueError as error:
            raise ResultsError(f"{path}: damaged: not valid JSON ({error}). {_RUN_AGAIN}") from error
        return _of_json(found, path)

    @classmethod
    def find(cls, folder: Path) -> RunResults | None:
        """The results in a run folder, None if there are none yet. Raises ResultsError."""
        path = folder / RESULTS
        return cls.read(path) if path.is_file() else None


def as_metrics(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: interval.as_dict() for name, interval in intervals.items()}


def without_nan(value: Any) -> Any:
    """The value with None for every float that JSON cannot express."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of_json(found: object, path: Path) -> RunResults:
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        schema = found.get("schema") if isinstance(found, dict) else type(found).__name__
        raise ResultsError(f"{path}: damaged: expected results of schema {SCHEMA}, found {schema}. {_RUN_AGAIN}")
    known = {entry.name: entry for entry in fields(RunResults)}
    required = [name for name, entry in known.items() if entry.default is MISSING and entry.default_factory is MISSING]
    if missing := [name for name in required if name not in found]:
        raise ResultsError(f"{path}: damaged: missing {', '.join(missing)}. {_RUN_AGAIN}")
    columns = found["per_problem"]
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1 or len(set(columns.get("id", []))) != len(columns.get("id", [])):
        raise ResultsError(f"{path}: damaged: per_problem needs columns of one length and different ids. {_RUN_AGAIN}")
    return RunResults(**{name: value for name, value in found.items() if name in known and value is not None})
