"""What an evaluation leaves beside its results.json: a run for the loggers, and the right not to be done again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from cft.config.build import redacted
from cft.console import console
from cft.loggers.build import RunFacts, log_transcripts, log_values, logging_to
from cft.runs.arm import spoken
from cft.runs.lineage import Link, checkpoint_link, model_inputs
from cft.runs.results import RESULTS, RunResults
from cft.runs.run import CONFIG, RunContext, flat, group_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cft.evaluation.evaluation import Sample


def evaluated_model(cfg: DictConfig) -> tuple[Link, ...]:
    """The checkpoint that is evaluated, none where it is a model as published."""
    return (checkpoint_link(Path(cfg.checkpoint)),) if cfg.checkpoint else model_inputs(cfg.model.path)


def evaluated_before(cfg: DictConfig, context: RunContext, *, inputs: Sequence[Link]) -> float | None:
    """Accuracy of a job of the same multirun that was configured like this one and read the same weights, if there is one:
    a multirun that is given its folder again (hydra.sweep.dir) goes on where it was cut off."""
    if not context.multirun:
        return None
    for path in sorted(context.folder.parent.glob(f"*/{RESULTS}")):
        if (results := same_evaluation(path, cfg, inputs=inputs)) is not None:
            console.print(f"{path.parent} has finished; nothing to do")
            return results.accuracy
    return None


def same_evaluation(path: Path, cfg: DictConfig, *, inputs: Sequence[Link]) -> RunResults | None:
    """The results of a run that was configured like this one and read the same weights, None if it was not."""
    config = path.with_name(CONFIG)
    if not (path.is_file() and config.is_file()):
        return None
    results = RunResults.read(path)
    known = [link["fingerprint"] for link in results.lineage.get("inputs", ())]
    same = known == [link.fingerprint for link in inputs]
    return results if same and flat(OmegaConf.load(config)) == flat(OmegaConf.create(redacted(cfg))) else None


def log_evaluation(
    cfg: DictConfig,
    context: RunContext,
    results: RunResults,
    *,
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    inputs: tuple[Link, ...],
) -> None:
    """Tell the loggers that the configuration names. results: as written to results.json."""
    with logging_to(cfg.logger, lambda: _facts(cfg, context, results, inputs)) as loggers:
        if loggers:
            values = {name: metric["value"] for name, metric in results.metrics.items()}
            ends = {f"{name}_{end}": metric[end] for name, metric in results.metrics.items() for end in ("low", "high")}
            log_values(loggers, {**values, **ends}, step=0)
            log_transcripts(loggers, samples, tokenizer)


def _facts(cfg: DictConfig, context: RunContext, results: RunResults, inputs: tuple[Link, ...]) -> RunFacts:
    """An evaluation of a checkpoint joins the group of its training."""
    arm = results.arm
    told = spoken(arm)
    trained = {"loss": arm.get("loss", "nll")} if "mask" in arm else {}  # as the training's own tags
    return RunFacts(
        context.folder,
        name="-".join([*map(str, told.values()), results.benchmark, f"seed{results.seed}"]),
        group=group_of(Path(cfg.checkpoint)) if cfg.checkpoint else context.group,
        job_type="evaluate",
        tags=(*(f"{key}:{value}" for key, value in {**told, **trained}.items()), f"benchmark:{results.benchmark}"),
        config=redacted(cfg) | {"arm": redacted(arm)},
        inputs=inputs,
    )
