"""Where metrics go: CSV in every training, Weights & Biases by `logger=wandb`. Builders named in conf/logger.

cft train passes its loggers to Lightning; cft annotate and cft evaluate open theirs with `logging_to`. Inputs and outputs of a
run (`cft/runs/lineage.py`) and samples of its responses go to the loggers that support them.
"""

from __future__ import annotations

import csv
import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cft.config.build import build
from cft.config.part import Part
from cft.models.text import decode
from cft.ranges import Count, Name, in_range
from cft.runs.lineage import Link, lineage

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from transformers import PreTrainedTokenizerBase

    from cft.evaluation.evaluation import Sample
    from cft.loggers.wandb_run import WandbRun

TRANSCRIPT_COLUMNS = (
    "problem_id",
    "sample",
    "problem",
    "answer",
    "response",
    "extracted",
    "outcome",
    "finish",
    "tokens",
)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Facts about the run, for loggers.

    config: plain and redacted. command: what was typed. inputs: the annotation or checkpoint it starts from.
    resumed_at: optimizer steps already done when the run was resumed, 0 = a new run.
    validated: whether the validation after the last of these steps was done as well.
    """

    folder: Path
    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    command: str = ""
    inputs: tuple[Link, ...] = ()
    resumed_at: int = 0
    validated: bool = True

    @property
    def lineage(self) -> dict[str, Any]:
        """As in results.json, without secrets."""
        return lineage(self.command, self.inputs)


def csv_logger(run: RunFacts) -> Logger:
    """metrics.csv in the run folder, one row per logged step; a resumed run appends to its earlier rows."""
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(run.folder, name="", version="", flush_logs_every_n_steps=10)
    path = run.folder / "metrics.csv"
    header, rows = _rows_before(path, step=run.resumed_at, validated=run.validated)
    with warnings.catch_warnings():
        # Lightning warns that it deletes metrics.csv, which is why the rows were read first.
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        experiment = logger.experiment
    if rows:
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, fieldnames=header)
            writer.writeheader()
            writer.writerows(rows)
        experiment.metrics_keys = header  # pyright: ignore[reportAttributeAccessIssue]
    return logger


def _rows_before(path: Path, *, step: int, validated: bool) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of the steps before `step`; later steps, and a pending validation, are run again."""
    if step == 0 or not path.is_file():
        return [], []
    with path.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        rows = [row for row in reader if row.get("step", "").isdecimal() and int(row["step"]) < step]
        if not validated:
            rows = [row for row in rows if int(row["step"]) < step - 1 or not _of_validation(row)]
        return list(reader.fieldnames or []), rows


def _of_validation(row: dict[str, str]) -> bool:
    return any(value for name, value in row.items() if name.startswith("val/"))


@in_range
def wandb_logger(
    run: RunFacts,
    *,
    project: Name,
    entity: str,
    group: str,
    tags: Sequence[str],
    mode: Literal["online", "offline"],
    artifacts: Literal["link", "upload", "none"],
    transcripts: Count,
) -> Logger:
    """One W&B run per job.

    Args:
        project: of W&B.
        entity: user or team; "" = the account's default.
        group: "" = one per multirun, annotation or evaluated training.
        tags: in addition to the run's own.
        mode: "offline" needs no account; WANDB_MODE overrides it.
        artifacts: "link" joins annotation, training and evaluation by files that describe them, "upload" sends rows and
            weights, too; online only.
        transcripts: problems whose responses are shown in a table, at least 0.
    """
    from cft.loggers.wandb_run import opened

    return opened(
        run,
        mode=mode,
        project=project,
        entity=entity,
        group=group,
        tags=tags,
        artifacts=artifacts,
        transcripts=transcripts,
    )


@contextmanager
def logging_to(parts: Mapping[str, Part], facts: Callable[[], RunFacts]) -> Iterator[list[Logger]]:
    """The loggers of a stage without a Trainer, closed at the end; `facts` is called only if there are any."""
    failed = True
    loggers: list[Logger] = []
    try:
        if parts:
            run = facts()
            loggers.extend(build(part)(run) for part in parts.values())
        yield loggers
        failed = False
    finally:
        for logger in loggers:
            logger.finalize("failed" if failed else "success")
        close_loggers(failed=failed)


def log_values(loggers: Sequence[Logger], values: Mapping[str, float], *, step: int) -> None:
    """Values without a number are left out: JSON has no NaN."""
    known = {name: value for name, value in values.items() if value == value}
    for logger in loggers:
        logger.log_metrics(known, step=step)
        logger.save()


def log_totals(loggers: Sequence[Logger], values: Mapping[str, float]) -> None:
    """Log values of the whole run to W&B's summary; on disk they are in the results of the stage."""
    for run in _wandb_runs(loggers):
        run.summary(dict(values))


def log_made(loggers: Sequence[Logger], link: Link) -> None:
    """Register the output of the job; call it after its files are written."""
    for run in _wandb_runs(loggers):
        run.made(link)


def log_transcripts(loggers: Sequence[Logger], samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase) -> None:
    """Log a table `eval/transcripts` of all responses to some problems, the same problems for every arm and seed."""
    for run in _wandb_runs(loggers):
        if run.transcripts > 0:
            chosen = _by_hash({sample.problem.id for sample in samples})[: run.transcripts]
            rows = [_transcript(s, tokenizer) for i in chosen for s in samples if s.problem.id == i]
            run.table("eval/transcripts", columns=TRANSCRIPT_COLUMNS, rows=rows)


def _wandb_runs(loggers: Sequence[Logger]) -> list[WandbRun]:
    if not loggers or "wandb" not in sys.modules:  # then there is none, and importing it takes a second
        return []
    from cft.loggers.wandb_run import WandbRun

    return [logger for logger in loggers if isinstance(logger, WandbRun)]


def _by_hash(ids: set[str]) -> list[str]:
    return sorted(ids, key=lambda i: hashlib.blake2b(f"transcript\x1f{i}".encode("utf-8", "surrogatepass")).digest())


def _transcript(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    problem, completion = sample.problem, sample.completion
    texts = [problem.question, problem.answer, decode(tokenizer, completion.ids), sample.extracted]
    return [problem.id, sample.sample, *texts, sample.outcome.name.lower(), completion.finish, len(completion.ids)]


def close_loggers(*, failed: bool) -> None:
    """End the W&B run, if one is open: the jobs of a multirun share a process, and the next job would write to it."""
    if "wandb" in sys.modules:
        import wandb

        wandb.finish(exit_code=int(failed))
