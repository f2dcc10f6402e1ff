"""The commands as functions, for notebooks and programs.

A function takes what its command takes: overrides as text (`"mask=critical"`, `"data.annotation=mine"`) and as keywords
(`limit=8`). The same check comes first, the same stage runs, and the same files are written; errors are raised (`UserError`),
never printed with an exit. Several jobs at once (`-m`) are the command line's alone.
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
from cft.quoting import setting
from cft.run_log import recording
from cft.runs.job import Job
from cft.runs.results import RESULTS, RunResults

if TYPE_CHECKING:
    from cft.annotation.store import AnnotationStore
    from cft.masks.base import Mask
    from cft.report.show import Shown
    from cft.types import AnnotatedResponse

ESTIMATE_STEPS = "estimate"  # how the names of those of `cft compare` begin
Value = str | int | float | bool | Path | None | Sequence["Value"] | Mapping[str, "Value"]


@dataclass(frozen=True, slots=True)
class Annotation:
    """What `cft.annotate` made.

    Args:
        folder: Of the store.
    """

    folder: Path

    @property
    def store(self) -> AnnotationStore:
        from cft.annotation.store import AnnotationStore

        return AnnotationStore(self.folder)

    def rows(self) -> list[AnnotatedResponse]:
        """Responses with the evidence about each of their tokens."""
        return self.store.rows()

    def counts(self) -> dict[str, int]:
        """Problems by what became of them, forks and replays."""
        return self.store.manifest()["counts"]


@dataclass(frozen=True, slots=True)
class Run:
    """What `cft.train`, `cft.rl` or `cft.evaluate` left.

    Args:
        folder: Of the run.
        accuracy: Greedy, 0-1; of several benchmarks their macro average, NaN where nothing was solved.
        results: results.json by benchmark.
    """

    folder: Path
    accuracy: float
    results: dict[str, RunResults]


@dataclass(frozen=True, slots=True)
class Steps:
    """What `cft.pipeline` or `cft.compare` left.

    Args:
        folder: Of the pipeline, with a folder for each step.
        runs: Trainings and tests that were done, by step.
        report: The page, None where no run was tested.
    """

    folder: Path
    runs: dict[str, Run]
    report: Path | None

    def table(self) -> str:
        """The report's comparison as Markdown, "" where there is none."""
        path = self.folder / "report" / "comparison.md"
        return path.read_text(encoding="utf-8") if path.is_file() else ""


@dataclass(frozen=True, slots=True)
class Exported:
    """What `cft.export` wrote.

    Args:
        folder: With data, manifest and card.
        manifest: Of it.
    """

    folder: Path
    manifest: dict[str, Any]


def annotate(*overrides: str, **settings: Value) -> Annotation:
    """`cft annotate`: find the tokens of correct responses that decide the answer.

    Raises:
        UserError: What the command would print.
    """
    return Annotation(_run("annotate", overrides, settings)[0])


def train(*overrides: str, **settings: Value) -> Run:
    """`cft train`: fine-tune on the tokens that a mask picks, and test the result.

    Raises:
        UserError: What the command would print.
        Interrupted: The run was told to end; what it can resume from is in its folder.
    """
    from cft.training.checkpointing.resume import start_of

    with _inputs("train", overrides, settings) as (cfg, job):
        start = start_of(job, resume=cfg.resume)
        accuracy = _stage("train")(cfg, job, start)
        return _measured(start.folder, accuracy)


def evaluate(*overrides: str, **settings: Value) -> Run:
    """`cft evaluate`: accuracy, pass@k, diversity and entropy of a model or a checkpoint.

    Raises:
        UserError: What the command would print.
    """
    accuracy, job = _run("evaluate", overrides, settings)
    return _measured(job.folder, accuracy)


def rl(*overrides: str, **settings: Value) -> Run:
    """`cft rl`: reinforcement learning from a checkpoint, with the verifier's verdicts as rewards.

    Raises:
        UserError: What the command would print.
        Interrupted: The run was told to end; what it can resume from is in its folder.
    """
    with _inputs("rl", overrides, settings) as (cfg, job):
        accuracy = _stage("rl")(cfg, job)
        return _measured(Path(cfg.resume) if cfg.resume else job.folder, accuracy)


def pipeline(*overrides: str, **settings: Value) -> Steps:
    """`cft pipeline`: several stages, checked together, run one after the other, skipped where they are done.

    Steps run in processes of their own, unless `isolated=False`: a script calls this under `if __name__ == "__main__":`.

    Raises:
        UserError: What the command would print.
        StepCrashed: A step's process was killed, or ended with an error of the program.
        Interrupted: It was told to end; the same call resumes from there.
    """
    return _steps(Path(_run("pipeline", overrides, settings)[0]))


def compare(*overrides: str, **settings: Value) -> Steps:
    """`cft compare`: from data to a table of arms: annotate, search a learning rate for each, train, test, report.

    Raises:
        UserError, StepCrashed, Interrupted: As `pipeline`.
    """
    return _steps(Path(_run("compare", overrides, settings)[0]))


def score(*overrides: str, **settings: Value) -> Path:
    """`cft score`: what a frozen model says of each token of an annotation. Returns the folder of the score.

    Raises:
        UserError: What the command would print.
    """
    return Path(_run("score", overrides, settings)[0])


def export(*overrides: str, **settings: Value) -> Exported:
    """`cft export`: an annotation under a mask as a data set for another trainer.

    Raises:
        UserError: What the command would print.
    """
    folder = Path(_run("export", overrides, settings)[0])
    return Exported(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


def push(*overrides: str, **settings: Value) -> str:
    """`cft push`: to the Hugging Face hub. Returns the address of the commit.

    Raises:
        UserError: What the command would print.
    """
    return _run("push", overrides, settings)[0]


def show(row: AnnotatedResponse, mask: Mask | None = None) -> Shown:
    """A response in color, as HTML in a notebook: critical tokens on red, those with one failing alternative on yellow.

    Args:
        row: Of an annotation.
        mask: Whose tokens are on red; None = those that decide the answer by two alternatives, or by as many as there are:
            critical ones of a right response, turning ones of a wrong one.

    Raises:
        MaskError: The row's evidence cannot answer what the mask asks.
    """
    from cft.report.show import shown

    return shown(row, mask=mask)


def _run(stage: str, overrides: Sequence[str], settings: Mapping[str, Value]) -> tuple[Any, Job]:
    """(what the stage returns, job)."""
    with _inputs(stage, overrides, settings) as (cfg, job):
        return _stage(stage)(cfg, job), job


@contextmanager
def _inputs(stage: str, overrides: Sequence[str], settings: Mapping[str, Value]) -> Iterator[tuple[Any, Job]]:
    """What the stage is called with, after the check of the command line.

    Raises ConfigError with all errors.
    """
    words = [*overrides, *(f"{key}={_literal(value)}" for key, value in settings.items())]
    flags = [word for word in words if word.startswith("-")]
    if flags:
        raise ConfigError(
            *(
                ErrorDetail(flag, "a flag of the command line; a function takes key=value only, one job")
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
    """As Hydra's grammar reads it back."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value) if not isinstance(value, float) else repr(value)
    if isinstance(value, str | Path):
        return setting("", str(value)).removeprefix("=")
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_literal(inner)}" for key, inner in value.items()) + "}"
    return "[" + ",".join(map(_literal, value)) + "]"


def _measured(folder: Path, accuracy: float) -> Run:
    """With the results below the folder, a suite's benchmark by benchmark."""
    paths = sorted(folder.glob(f"*/{RESULTS}")) or list(folder.glob(RESULTS))
    found = [RunResults.read(path) for path in paths]
    return Run(folder, accuracy, {results.benchmark: results for results in found})


def _steps(folder: Path) -> Steps:
    """Those of the folder that left results, the few of an estimate left out."""
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
