"""Tests of a training run: selects the problems that fit, and measures the model before and after training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cft.config.build import redacted
from cft.config.part import Part
from cft.config.schema import EvaluationConfig, Split
from cft.data.splits import Splits
from cft.engines.refusals import require_within_window
from cft.evaluation.base import base_accuracy
from cft.evaluation.evaluation import SampleRequest, Solver, summarize, verdict_counts, write_samples
from cft.evaluation.room import Room, require_room, room_for
from cft.loggers.build import log_transcripts
from cft.models.lazy import LazyModel
from cft.prompts.chat import Prompt
from cft.runs.results import as_metrics
from cft.types import Problem, Verifier
from cft.verifiers import verifier_fingerprint

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


def room_of(
    splits: Splits,
    split: Split,
    *,
    wanted: int,
    evaluation: EvaluationConfig,
    model: LazyModel,
    prompt: Prompt,
    engine: str,
) -> Room:
    """Those of the first `wanted` problems of a split that fit into the context; -1 = all problems.

    Raises:
        NoRoom: too many problems do not fit.
        UserError: the engine does not support the required length.
    """
    limit = evaluation.max_new_tokens
    problems = splits.of(split)[: wanted if wanted >= 0 else None] if wanted else ()
    prompt_lens = {problem.id: len(prompt.ids(model.tokenizer, problem.question)) for problem in problems}
    room = room_for(
        problems,
        prompt_len=lambda problem: prompt_lens[problem.id],
        context=model.facts.context,
        max_new_tokens=limit,
    )
    if wanted:
        require_room(
            room,
            where=f"{splits.name}/{split}",
            key="evaluation.max_not_run",
            max_not_run=evaluation.max_not_run,
            max_new_tokens=limit,
        )
        if engine == "shared_prefix":
            require_within_window(model.config, length=max(prompt_lens[p.id] for p in room.run) + limit)
    return room


def base_of(
    model: LazyModel,
    problems: Sequence[Problem],
    *,
    make_solver: Callable[[], Solver],
    verifier: Verifier,
    engine: Part,
    prompting: dict[str, Any],
    max_new_tokens: int,
) -> dict[str, Any]:
    """Results of the model before training on the test problems; measured once and cached."""
    decided_by = {
        "weights": model.weights(),
        "eos": model.facts.eos_ids,
        "verifier": verifier_fingerprint(verifier),
        "engine": redacted(engine),
        "context": model.facts.context,
        **prompting,
    }
    return base_accuracy(make_solver, problems, max_new_tokens=max_new_tokens, decided_by=decided_by)


def evaluated(
    settings: EvaluationConfig,
    problems: Sequence[Problem],
    *,
    make_solver: Callable[[], Solver],
    verifier: Verifier,
    loggers: Sequence[Logger],
    step: int,
    folder: Path,
) -> dict[str, Any]:
    """The fields of `RunResults` from the test problems; all responses are written to samples.parquet."""
    request = SampleRequest(
        settings.num_samples, settings.temperature, settings.top_p, settings.seed, settings.max_new_tokens
    )
    evaluation = {**dataclasses.asdict(request), "verifier": verifier_fingerprint(verifier)}
    if not problems:
        return {"evaluation": evaluation, "metrics": {}, "per_problem": {"id": [], "correct": []}}
    solver = make_solver()
    samples = solver.solve(problems, request=request, title="Evaluating")
    intervals, per_problem = summarize(samples, seed=settings.seed)
    write_samples(folder / "samples.parquet", samples, solver.tokenizer)
    log_transcripts(loggers, samples, solver.tokenizer)
    for logger in loggers:
        logger.log_metrics({name: i.value for name, i in intervals.items()}, step=step)
        logger.save()
    return {
        "evaluation": evaluation,
        "verdicts": verdict_counts(samples),
        "metrics": as_metrics(intervals),
        "per_problem": per_problem,
    }
