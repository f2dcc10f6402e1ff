"""The evaluate stage: measures a model or a checkpoint on benchmarks; writes results.json, samples.parquet, a table."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from cft import run_log
from cft.benchmarks.sets import Suite, members_of, verifier_for
from cft.config.build import build
from cft.config.schema import EvaluateConfig
from cft.console import console
from cft.data.splits import Splits
from cft.decoding import Rule, bound, fingerprint
from cft.engines.factory import device_beside
from cft.engines.refusals import require_adjusts, require_samples
from cft.evaluation.evaluation import (
    Sample,
    SampleRequest,
    accuracy_sentence,
    summarize,
    verdict_counts,
    write_samples,
)
from cft.evaluation.lm_eval_results import Measured, lm_eval_results
from cft.evaluation.metrics import Interval
from cft.evaluation.room import Room, require_room, room_for
from cft.evaluation.suites import macro_average, suite_table, write_summary
from cft.files import exclusive, write_json
from cft.fleets.base import Crew, Fleet
from cft.loggers.evaluation_record import evaluated_before, evaluated_model, log_evaluation, same_evaluation
from cft.models.lazy import LazyModel
from cft.models.load import load_tokenizer
from cft.prompts.chat import Chat, Prompt, prompting
from cft.quiet import quiet_libraries
from cft.runs.job import Job
from cft.runs.lineage import Link, lineage
from cft.runs.results import RESULTS, RunResults, as_metrics, without_nan
from cft.runs.run import save_config
from cft.runs.start import checkpoint_folder, require_same_prompt
from cft.stages.evaluation_identity import evaluated_identity
from cft.stages.evaluation_worker import MakeSolving, Piece, known_facts, request_of, solved, words_for
from cft.types import Problem, Verifier
from cft.verifiers import other_verifier_note, verifier_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUMMARY = "summary.csv"
LM_EVAL = "lm_eval"


def evaluate(cfg: EvaluateConfig, job: Job) -> float:
    """Evaluate a model and write results.json and samples.parquet for each benchmark.

    For a suite, each benchmark has its own folder, and the suite's folder has the macro average and summary.csv.

    Returns:
        Greedy accuracy, 0-1; for several benchmarks, their macro average.
    """
    quiet_libraries()
    inputs = evaluated_model(cfg.checkpoint, model_path=cfg.model["path"])
    if (before := evaluated_before(job, inputs=inputs)) is not None:
        return before
    with exclusive(job.folder):
        return _evaluate(cfg, job, inputs)


def _evaluate(cfg: EvaluateConfig, job: Job, inputs: tuple[Link, ...]) -> float:
    started = time.time()
    benchmark = build(cfg.benchmark)
    members = members_of(benchmark)
    chosen = {name: splits.of(cfg.split)[: cfg.limit if cfg.limit >= 0 else None] for name, splits in members.items()}
    verifiers = [
        verifier_for(splits, chosen=build(cfg.verifier), thinking=cfg.verify.thinking.tags, strip=cfg.verify.strip)
        for splits in members.values()
    ]
    for verifier in verifiers:  # raises an error for an invalid verifier before anything is loaded
        verifier_fingerprint(verifier)
    with _subject(cfg, job, inputs, verifiers) as subject:
        return _measured(subject, benchmark, members, chosen, started=started)


def _measured(
    subject: _Subject,
    benchmark: Any,
    members: dict[str, Splits],
    chosen: dict[str, tuple[Problem, ...]],
    *,
    started: float,
) -> float:
    cfg, job = subject.cfg, subject.job
    # All benchmarks are checked before the first problem is solved.
    rooms = {name: _room(subject, members[name], problems) for name, problems in chosen.items()}
    run_log.write_to(job.folder)
    in_suite = isinstance(benchmark, Suite)
    found: dict[str, RunResults] = {}
    for name, splits in members.items():
        folder = job.folder / name if in_suite else job.folder
        folder.mkdir(parents=True, exist_ok=True)
        found[name] = _evaluated(subject, splits, rooms[name], folder=folder)
    results = {name: entry.as_dict() for name, entry in found.items()}
    averages = {}
    if in_suite:
        averages = macro_average(results, seed=cfg.seed)
        _write_suite(subject, benchmark, results, averages)
    model = subject.model
    facts = Measured(
        model=model.spec.name,
        dtype=model.spec.dtype,
        device=str(subject.crew.facts["engine"].get("device", "")),
        chat_template=_template_of(model.tokenizer) if isinstance(subject.prompt, Chat) else "",
        system=subject.prompt.system if isinstance(subject.prompt, Chat) else "",
        limit=cfg.limit,
        seed=cfg.seed,
        available={name: len(splits.of(cfg.split)) for name, splits in members.items()},
        hashes={name: splits.fingerprint for name, splits in members.items()},
        started=started,
        ended=time.time(),
    )
    date = datetime.fromtimestamp(started).isoformat().replace(":", "-")
    shaped = lm_eval_results(results, facts=facts, group=benchmark.name if in_suite else "", averages=averages)
    write_json(job.folder / LM_EVAL / f"results_{date}.json", without_nan(shaped))
    if in_suite:
        return averages["eval/accuracy"].value
    return next(iter(found.values())).accuracy


@dataclass(frozen=True, slots=True)
class _Subject:
    """The evaluated model, which each worker loads once for all benchmarks. identity: arm and settings of its results."""

    cfg: EvaluateConfig
    job: Job
    inputs: tuple[Link, ...]
    prompt: Prompt
    model: LazyModel
    crew: Crew[Piece, list[Sample]]
    identity: dict[str, Any]
    seed: int
    decoding: str  # fingerprint of the decoding rule, "" if there is none
    graded_by: dict[str, str]  # benchmark -> fingerprint of the verifier in the checkpoint's training

    @property
    def request(self) -> SampleRequest:
        return request_of(self.cfg)

    @property
    def conditions(self) -> dict[str, Any]:
        """How responses are decoded."""
        return dataclasses.asdict(self.request) | ({"decoding": self.decoding} if self.decoding else {})


@contextmanager
def _subject(
    cfg: EvaluateConfig, job: Job, inputs: tuple[Link, ...], verifiers: Sequence[Verifier]
) -> Iterator[_Subject]:
    fleet: Fleet = build(cfg.fleet)
    spec = build(cfg.model)
    trained: RunResults | None = None
    if cfg.checkpoint:
        folder, trained = checkpoint_folder(cfg.checkpoint)
        spec = dataclasses.replace(spec, path=str(folder), name=Path(cfg.checkpoint).name, lora=None)
    prompt, tokenizer = build(cfg.prompt), load_tokenizer(spec)
    now = prompting(prompt, tokenizer)
    require_same_prompt(trained, now, checkpoint=cfg.checkpoint, prompt_config=cfg.prompt, doing="evaluation")
    # A checkpoint without results of its training is identified by its weights.
    unknown = bool(cfg.checkpoint) and trained is None
    make_engine = build(cfg.engine)
    require_samples(make_engine, num_samples=cfg.num_samples, key="num_samples")
    rule: Rule | None = build(cfg.decoding)
    require_adjusts(make_engine, rule=rule.name if rule else "")
    model = LazyModel(spec, tokenizer, ends=[prompt.end_id(tokenizer)], device="cpu")
    for verifier in verifiers if rule else ():
        bound(rule, words_for(cfg, model, verifier))
    hash_weights = make_engine.hashes_weights and (unknown or fleet.elsewhere)
    make = MakeSolving.of(cfg, spec=spec, hash_weights=hash_weights)
    known = partial(known_facts, cfg, spec, device="cpu", hash_weights=hash_weights)
    device = device_beside(make_engine, device=cfg.device)
    with fleet.crew(make, device=device, expected=lambda: known()[1]) as crew:
        yield _Subject(
            cfg,
            job,
            inputs,
            prompt,
            model,
            crew,
            evaluated_identity(
                job, trained, checkpoint=cfg.checkpoint, weights=crew.facts["weights"] if unknown else "", rule=rule
            ),
            cfg.seed if trained is None else trained.seed,
            fingerprint(rule) if rule else "",
            _training_verifier(trained),
        )


def _evaluated(subject: _Subject, splits: Splits, room: Room, *, folder: Path) -> RunResults:
    """The results of one benchmark, written to its folder, or read from there if this run already evaluated it."""
    cfg, model = subject.cfg, subject.model
    if (known := same_evaluation(folder / RESULTS, subject.job, inputs=subject.inputs)) is not None:
        console.print(f"{folder} has finished; nothing to do")
        return known
    verifier = verifier_for(
        splits, chosen=build(cfg.verifier), thinking=cfg.verify.thinking.tags, strip=cfg.verify.strip
    )
    graded_by = verifier_fingerprint(verifier)
    if note := other_verifier_note(subject.graded_by.get(splits.name, graded_by), graded_by):
        console.print(note.replace("annotation", "training"), markup=False)
    started = time.monotonic()
    title = f"Evaluating {model.spec.name} on {splits.name}"
    samples = solved(cfg, subject.crew, room.run, verifier=verifier, title=title, command=subject.job.command)
    intervals, per_problem = summarize(samples, seed=cfg.seed)
    save_config(folder, subject.job)
    write_samples(folder / "samples.parquet", samples, model.tokenizer)
    results = RunResults(
        **_head(subject, benchmark=splits.name),
        **room.facts(),
        verdicts=verdict_counts(samples),
        metrics=as_metrics(intervals),
        per_problem=per_problem,
        evaluation={**subject.conditions, "verifier": graded_by},
        problems_sha256=splits.fingerprint,
        seconds=round(time.monotonic() - started, 1),
    )
    results.write(folder)
    log_evaluation(
        cfg.logger,
        subject.job,
        results,
        folder=folder,
        samples=samples,
        tokenizer=model.tokenizer,
        inputs=subject.inputs,
    )
    console.print(metrics_table(f"{model.spec.name} on {splits.name}/{cfg.split}, {len(room.run)} problems", intervals))
    console.print(accuracy_sentence(results.verdicts, not_run=len(room.not_run)), markup=False)
    console.print(f"Results: {folder / RESULTS}, every response: {folder / 'samples.parquet'}")
    return results


def _training_verifier(trained: RunResults | None) -> dict[str, str]:
    verifier = trained.evaluation.get("verifier") if trained else None
    return {trained.benchmark: verifier} if trained and isinstance(verifier, str) else {}


def _room(subject: _Subject, splits: Splits, problems: tuple[Problem, ...]) -> Room:
    """The problems of a benchmark that fit into the context. Raises NoRoom."""
    cfg = subject.cfg
    room = room_for(
        problems,
        prompt_len=lambda problem: len(subject.prompt.ids(subject.model.tokenizer, problem.question)),
        context=subject.model.facts.context,
        max_new_tokens=cfg.max_new_tokens,
    )
    require_room(
        room,
        where=f"{splits.name}/{cfg.split}",
        key="max_not_run",
        max_not_run=cfg.max_not_run,
        max_new_tokens=cfg.max_new_tokens,
    )
    return room


def _write_suite(
    subject: _Subject, suite: Suite, results: dict[str, dict[str, Any]], averages: dict[str, Interval]
) -> None:
    """Write the suite's results.json, with macro averages but without per-problem columns, and summary.csv."""
    folder = subject.job.folder
    save_config(folder, subject.job)
    verifiers = {name: entry["evaluation"]["verifier"] for name, entry in results.items()}
    total = sum(entry["problems"] for entry in results.values())
    RunResults(
        **_head(subject, benchmark=suite.name),
        problems=total,
        not_run={name: entry["not_run"] for name, entry in results.items() if entry["not_run"]},
        metrics=as_metrics(averages),
        per_problem={"id": [], "correct": []},
        evaluation={**subject.conditions, "verifier": verifiers},
        suite={name: {"problems": entry["problems"], "metrics": entry["metrics"]} for name, entry in results.items()},
        seconds=round(sum(entry["seconds"] for entry in results.values()), 1),
    ).write(folder)
    write_summary(folder / SUMMARY, results, averages)
    console.print(suite_table(f"{subject.model.spec.name} on {suite.name}", results, averages))
    console.print(f"Results: {folder / RESULTS}, table: {folder / SUMMARY}")


def _head(subject: _Subject, *, benchmark: str) -> dict[str, Any]:
    return {
        "stage": "evaluate",
        "run": subject.job.folder.name,
        **subject.identity,
        "seed": subject.seed,
        "benchmark": benchmark,
        "split": subject.cfg.split,
        "lineage": lineage(subject.job.command, subject.inputs),
    }


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""


def metrics_table(title: str, intervals: dict[str, Interval]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval over problems", justify="right")
    for name, interval in intervals.items():
        table.add_row(name, f"{interval.value:.3f}", f"[{interval.low:.3f}, {interval.high:.3f}]".replace("[", r"\["))
    return table
