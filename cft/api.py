"""The commands as functions, for notebooks and programs.

A function accepts the overrides of its command, as text (`"mask=critical"`, `"data.annotation=mine"`) and as keywords
(`limit=8`). It runs the same config check and the same stage and writes the same files; errors are raised (`UserError`) instead
of printed. Several jobs at once (`-m`) are available only on the command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cft.cli.job import hydra_job
from cft.config.build import ConfigError, errors_of
from cft.config.check import ErrorDetail
from cft.config.stages import STAGES
from cft.errors import BadValue
from cft.quoting import setting
from cft.run_log import recording
from cft.runs.job import Job
from cft.runs.results import RESULTS, RunResults

if TYPE_CHECKING:
    from cft.annotation.store import AnnotationStore
    from cft.masks.base import Mask
    from cft.report.show import Shown
    from cft.types import AnnotatedResponse

ESTIMATE_STEPS = "estimate"  # prefix of the short steps that `cft compare` runs for its estimate
Value = str | int | float | bool | Path | None | Sequence["Value"] | Mapping[str, "Value"]


@dataclass(frozen=True, slots=True)
class Annotation:
    """An annotation created by `cft.annotate`.

    Args:
        folder: Folder of the annotation.
    """

    folder: Path

    @property
    def store(self) -> AnnotationStore:
        from cft.annotation.store import AnnotationStore

        return AnnotationStore(self.folder)

    def rows(self) -> list[AnnotatedResponse]:
        """Responses with the evidence for each of their tokens."""
        return self.store.rows()

    def counts(self) -> dict[str, int]:
        """Number of problems by status, of forks and of replays."""
        return self.store.manifest()["counts"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run of `cft.train`, `cft.rl` or `cft.evaluate`.

    Args:
        folder: Folder of the run.
        accuracy: Greedy accuracy, 0-1; for several benchmarks their macro average; NaN if nothing was evaluated.
        results: Contents of results.json, by benchmark.
    """

    folder: Path
    accuracy: float
    results: dict[str, RunResults]


@dataclass(frozen=True, slots=True)
class Steps:
    """The result of `cft.pipeline` or `cft.compare`.

    Args:
        folder: Folder of the pipeline, with a folder for each step.
        runs: Finished training and evaluation runs, by step.
        report: Path of the HTML report, None if no run was evaluated.
    """

    folder: Path
    runs: dict[str, Run]
    report: Path | None

    def table(self) -> str:
        """The report's comparison as Markdown, "" if there is none."""
        path = self.folder / "report" / "comparison.md"
        return path.read_text(encoding="utf-8") if path.is_file() else ""


@dataclass(frozen=True, slots=True)
class Exported:
    """A data set written by `cft.export`.

    Args:
        folder: Folder with data, manifest and card.
        manifest: Contents of manifest.json.
    """

    folder: Path
    manifest: dict[str, Any]


def annotate(*overrides: str, **settings: Value) -> Annotation:
    """`cft annotate`: find the critical tokens of correct responses.

    Raises:
        UserError: With the message that the command would print.
    """
    return Annotation(_run("annotate", overrides, settings)[0])


def train(*overrides: str, **settings: Value) -> Run:
    """`cft train`: fine-tune on the tokens that a mask selects, and evaluate the result.

    Raises:
        UserError: With the message that the command would print.
        Interrupted: The run was stopped by a signal or time limit; its folder holds a checkpoint to resume from.
    """
    from cft.training.checkpointing.resume import start_of

    with _inputs("train", overrides, settings) as (cfg, job):
        start = start_of(job, resume=cfg.resume)
        accuracy = _stage("train")(cfg, job, start)
        return _measured(start.folder, accuracy)


def evaluate(*overrides: str, **settings: Value) -> Run:
    """`cft evaluate`: accuracy, pass@k, diversity and entropy of a model or a checkpoint.

    Raises:
        UserError: With the message that the command would print.
    """
    accuracy, job = _run("evaluate", overrides, settings)
    return _measured(job.folder, accuracy)


def rl(*overrides: str, **settings: Value) -> Run:
    """`cft rl`: reinforcement learning from a checkpoint, with the verifier's verdicts as rewards.

    Raises:
        UserError: With the message that the command would print.
        Interrupted: The run was stopped by a signal or time limit; its folder holds a checkpoint to resume from.
    """
    with _inputs("rl", overrides, settings) as (cfg, job):
        accuracy = _stage("rl")(cfg, job)
        return _measured(Path(cfg.resume) if cfg.resume else job.folder, accuracy)


def pipeline(*overrides: str, **settings: Value) -> Steps:
    """`cft pipeline`: check several stages together, then run one after another, skipping finished ones.

    Each step runs in its own process unless `isolated=False`; a script must call this under `if __name__ == "__main__":`.

    Raises:
        UserError: With the message that the command would print.
        StepCrashed: A step's process was killed, or ended with an unexpected error.
        Interrupted: The pipeline was stopped; the same call resumes it.
    """
    return _steps(Path(_run("pipeline", overrides, settings)[0]))


def compare(*overrides: str, **settings: Value) -> Steps:
    """`cft compare`: from data to a table of arms: annotate, search a learning rate per arm, train, evaluate, report.

    Raises:
        UserError, StepCrashed, Interrupted: As in `pipeline`.
    """
    return _steps(Path(_run("compare", overrides, settings)[0]))


def score(*overrides: str, **settings: Value) -> Path:
    """`cft score`: compute a score of each token of an annotation by a frozen model. Returns the folder of the score.

    Raises:
        UserError: With the message that the command would print.
    """
    return Path(_run("score", overrides, settings)[0])


def export(*overrides: str, **settings: Value) -> Exported:
    """`cft export`: write an annotation, with a mask applied, as a data set for another trainer.

    Raises:
        UserError: With the message that the command would print.
    """
    folder = Path(_run("export", overrides, settings)[0])
    return Exported(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


def push(*overrides: str, **settings: Value) -> str:
    """`cft push`: upload to the Hugging Face hub. Returns the URL of the commit.

    Raises:
        UserError: With the message that the command would print.
    """
    return _run("push", overrides, settings)[0]


def show(row: AnnotatedResponse, mask: Mask | None = None) -> Shown:
    """A response as colored HTML in a notebook: critical tokens on red, tokens with one failing alternative on yellow.

    Args:
        row: A row of an annotation.
        mask: Selects the tokens on red; None = critical tokens of a right response, turning tokens of a wrong one, by two
            alternatives, or one if the annotation holds only one.

    Raises:
        BadValue: It is no such row.
        MaskError: The row lacks the evidence that the mask needs.
    """
    from cft.report.show import shown
    from cft.types import AnnotatedResponse

    if not isinstance(row, AnnotatedResponse):
        raise BadValue(
            f"show: expected one row of an annotation, such as cft.annotate(...).rows()[0], found {type(row).__name__}"
        )
    return shown(row, mask=mask)


def _run(stage: str, overrides: Sequence[str], settings: Mapping[str, Value]) -> tuple[Any, Job]:
    """Run a stage; returns its result and the job."""
    with _inputs(stage, overrides, settings) as (cfg, job):
        return _stage(stage)(cfg, job), job


@contextmanager
def _inputs(stage: str, overrides: Sequence[str], settings: Mapping[str, Value]) -> Iterator[tuple[Any, Job]]:
    """Check the overrides and yield the arguments of the stage. Raises ConfigError with all errors."""
    words = [*overrides, *(f"{key}={_literal(value)}" for key, value in settings.items())]
    flags = [word for word in words if word.startswith("-")]
    if flags:
        raise ConfigError(
            *(
                ErrorDetail(flag, "a flag of the command line; a function takes only key=value and runs one job")
                for flag in flags
            )
        )
    rewrite = STAGES[stage].arguments
    words = _named(rewrite)(words) if rewrite else words
    if errors := errors_of(stage, words):
        raise ConfigError(*errors)
    with recording(), hydra_job(stage, words) as inputs:
        yield inputs


def _literal(value: Value) -> str:
    """The value in Hydra's override grammar."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value) if not isinstance(value, float) else repr(value)
    if isinstance(value, str | Path):
        return setting("", str(value)).removeprefix("=")
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_literal(inner)}" for key, inner in value.items()) + "}"
    return "[" + ",".join(map(_literal, value)) + "]"


def _measured(folder: Path, accuracy: float) -> Run:
    """A run with the results found in its folder: of one benchmark, or of each benchmark of a suite."""
    paths = sorted(folder.glob(f"*/{RESULTS}")) or list(folder.glob(RESULTS))
    found = [RunResults.read(path) for path in paths]
    return Run(folder, accuracy, {results.benchmark: results for results in found})


def _steps(folder: Path) -> Steps:
    """The steps of a pipeline folder that have results, without those run for an estimate."""
    names = sorted(path.stem for path in (folder / "steps").glob("*.json"))
    runs = {}
    for name in names:
        found = RunResults.find(folder / name)
        if found is not None and not name.startswith(f"{ESTIMATE_STEPS}-"):
            runs[name] = _measured(folder / name, found.accuracy)
    page = folder / "report" / "report.html"
    return Steps(folder, runs, page if page.is_file() else None)


def _stage(name: str) -> Any:
    return _named(STAGES[name].run)


def _named(target: str) -> Any:
    module, _, function = target.partition(":")
    return getattr(import_module(module), function)
