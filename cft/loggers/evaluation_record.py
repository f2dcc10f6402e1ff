"""Records an evaluation with the loggers, and finds finished evaluations so that they are not repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cft.config.part import Part
from cft.config.redaction import redacted
from cft.console import console
from cft.loggers.build import RunFacts, log_transcripts, log_values, logging_to
from cft.runs.job import Job
from cft.runs.lineage import Link, checkpoint_link, model_inputs
from cft.runs.names import parts_of_name, run_name
from cft.runs.results import RESULTS, RunResults
from cft.runs.run import CONFIG, flat, group_of, saved_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cft.evaluation.evaluation import Sample


def evaluated_model(checkpoint: str, *, model_path: str) -> tuple[Link, ...]:
    """The evaluated checkpoint, none for a published model."""
    return (checkpoint_link(Path(checkpoint)),) if checkpoint else model_inputs(model_path)


def evaluated_before(job: Job, *, inputs: Sequence[Link]) -> float | None:
    """Accuracy of a job of the same multirun with the same configuration and weights, if there is one: a multirun that is given
    its folder again (hydra.sweep.dir) resumes where it was interrupted."""
    if not job.multirun:
        return None
    for path in sorted(job.folder.parent.glob(f"*/{RESULTS}")):
        if (results := same_evaluation(path, job, inputs=inputs)) is not None:
            console.print(f"{path.parent} has finished; nothing to do")
            return results.accuracy
    return None


def same_evaluation(path: Path, job: Job, *, inputs: Sequence[Link]) -> RunResults | None:
    """The results of a run with the same configuration and weights, else None."""
    if not (path.is_file() and path.with_name(CONFIG).is_file()):
        return None
    results = RunResults.read(path)
    known = [link["fingerprint"] for link in results.lineage.get("inputs", ())]
    same = known == [link.fingerprint for link in inputs]
    return results if same and saved_config(path.parent) == flat(job.config) else None


def log_evaluation(
    parts: Mapping[str, Part],
    job: Job,
    results: RunResults,
    *,
    folder: Path,
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    inputs: tuple[Link, ...],
) -> None:
    """Log to the configured loggers. results: as written to results.json in `folder`."""
    with logging_to(parts, lambda: _facts(job, folder, results, inputs)) as loggers:
        if loggers:
            values = {name: metric["value"] for name, metric in results.metrics.items()}
            ends = {f"{name}_{end}": metric[end] for name, metric in results.metrics.items() for end in ("low", "high")}
            log_values(loggers, {**values, **ends}, step=0)
            log_transcripts(loggers, samples, tokenizer)


def _facts(job: Job, folder: Path, results: RunResults, inputs: tuple[Link, ...]) -> RunFacts:
    """The W&B group; an evaluation of a checkpoint joins the group of its training."""
    arm = results.arm
    told = parts_of_name(arm)
    trained = {"loss": arm.get("loss", "nll")} if "mask" in arm else {}  # as the training's own tags
    checkpoint = str(job.config["checkpoint"])
    return RunFacts(
        folder,
        name=run_name(arm, results.benchmark, seed=results.seed),
        group=group_of(Path(checkpoint)) if checkpoint else job.group,
        job_type="evaluate",
        tags=(*(f"{key}:{value}" for key, value in {**told, **trained}.items()), f"benchmark:{results.benchmark}"),
        config={**job.config, "arm": redacted(arm)},
        command=job.command,
        inputs=inputs,
    )
