"""Annotation from a configuration: problems -> units -> store, with an estimate, live progress and a summary."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cft.annotation.annotator import Annotator, Solved, Unit, tally_counts
from cft.annotation.shards import WHOLE, Part, Shard, unfinished_message
from cft.annotation.store import AnnotationStore, check_name
from cft.annotation.units import Plan, ids_hash
from cft.benchmarks.sets import verifier_for
from cft.config.build import ConfigError, build
from cft.config.schema import AnnotateConfig, Split
from cft.console import Bar, console, progress
from cft.data.sources import Splits
from cft.engines.server.probe import with_stored_probe
from cft.loggers.build import RunFacts, log_made, log_totals, log_values, logging_to
from cft.masks.critical import critical_fraction
from cft.models.lazy import LazyModel
from cft.models.load import ModelSpec, load_tokenizer
from cft.prompts.chat import prompting
from cft.quiet import quiet_libraries
from cft.runs.cards import write_annotation_card
from cft.runs.job import Job
from cft.runs.lineage import Link, annotation_link, lineage, model_inputs
from cft.stages.annotation_summary import print_summary
from cft.types import Budget, Completion, Engine
from cft.verifiers import verifier_fingerprint
from cft.verifiers.grader import Grader
from cft.verifiers.pool import VerifierPool

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

FORKS_PER_POSITION = 1.5  # of two alternatives under short-circuit; sharpened as units finish


def annotate(cfg: AnnotateConfig, job: Job) -> Path:
    """Run or resume the annotation that `cfg` describes; returns the store's folder."""
    quiet_libraries()
    store = AnnotationStore(Path(cfg.annotations_dir) / check_name(cfg.annotation, annotations_dir=cfg.annotations_dir))
    splits = build(cfg.data)
    plan, shard = _plan(cfg, splits), Shard(cfg.shard, cfg.num_shards)
    _print_problems(splits, plan, split=cfg.split)
    if cfg.complete:
        _require_annotation(store)
    verifier = verifier_for(splits, chosen=build(cfg.verifier))
    verifier_fingerprint(verifier)  # refuses a class that is no verifier before anything is loaded
    spec, prompt, make_engine = build(cfg.model), build(cfg.prompt), build(cfg.engine)
    tokenizer = load_tokenizer(spec)
    asked = prompting(prompt, tokenizer)
    model = LazyModel(
        spec,
        tokenizer,
        ends=[prompt.end_id(tokenizer)],
        device=cfg.device,
        shard=cfg.shard,
        num_shards=cfg.num_shards,
    )
    weights = model.weights() if make_engine.hashes_weights else ""
    inputs = model_inputs(spec.path)
    with (
        logging_to(
            cfg.logger, lambda: _run_facts(cfg, job, model=spec.name, data=splits.name, inputs=inputs)
        ) as loggers,
        VerifierPool(verifier, workers=cfg.verify.workers, timeout_s=cfg.verify.timeout_s) as pool,
        closing(make_engine(model)) as engine,
    ):
        annotator = Annotator(
            engine=engine,
            tokenizer=tokenizer,
            prompt=prompt,
            grader=Grader(tokenizer, pool.verify_all, verifier.final if verifier.can_be_final else None),
            budget=Budget(cfg.max_new_tokens),
            eos_ids=model.facts.eos_ids,
            max_positions=model.facts.context,
            num_alternatives=cfg.num_alternatives,
            short_circuit=not plan.every_outcome,
            replay_fraction=cfg.replay_fraction,
            responses=cfg.responses,
            padding_ids=model.facts.unnamed_ids,
        )
        with store.writing(
            fingerprint=_conditions(
                cfg,
                model,
                weights=weights,
                numerics=_as_stored(numerics(engine), store),
                asked=asked,
                splits=splits,
                judged_by=verifier_fingerprint(verifier),
            ),
            info=_origin(cfg, job, spec=spec, inputs=inputs),
            part=Part(shard, plan.request(), plan.to_do, command=job.command_without("shard")),
        ):
            _annotate_units(store, annotator, plan=plan, shard=shard, loggers=loggers)
            _fill_units(store, annotator, plan=plan, shard=shard)
            _print_back_offs(engine)
        _finish(store, job, shard=shard, loggers=loggers, max_new_tokens=cfg.max_new_tokens)
    return store.folder


def _plan(cfg: AnnotateConfig, splits: Splits) -> Plan:
    problems = splits.of(cfg.split)
    return Plan(
        problems,
        asked=len(problems) if cfg.limit < 0 else min(cfg.limit, len(problems)),
        unit_size=cfg.unit_size,
        num_alternatives=cfg.num_alternatives,
        every_outcome=cfg.complete or not cfg.short_circuit,
        fills_only=cfg.complete,
    )


def _print_problems(splits: Splits, plan: Plan, *, split: Split) -> None:
    sizes = ", ".join(f"{name} {len(getattr(splits, name))}" for name in ("train", "validation", "test"))
    console.print(f"Problems of {splits.name}: {sizes}; asked for: {plan.asked} of {split}", markup=False)
    for reason, count in splits.dropped.items():
        console.print(f"Problems dropped: {count} ({reason})")


def _conditions(
    cfg: AnnotateConfig,
    model: LazyModel,
    *,
    weights: str,
    numerics: dict[str, Any],
    asked: dict[str, Any],
    splits: Splits,
    judged_by: str,
) -> dict[str, Any]:
    """What every unit of the annotation is made under: its fingerprint."""
    spec, ends = model.spec, model.facts.eos_ids
    return {
        "model": {
            "path": spec.path,
            "revision": spec.revision,
            "weights": weights,
            "dtype": spec.dtype,
        },
        **asked,
        "decoding": {"responses": cfg.responses, "max_new_tokens": cfg.max_new_tokens, "eos_ids": list(ends)},
        "verifier": judged_by,
        "data": {"source": splits.name, "split": cfg.split, "sha256": splits.fingerprint},
        "unit_size": cfg.unit_size,
        "replay_fraction": cfg.replay_fraction,
        "numerics": numerics,
    }


def _origin(cfg: AnnotateConfig, job: Job, *, spec: ModelSpec, inputs: tuple[Link, ...]) -> dict[str, Any]:
    """What the manifest says of the annotation beside its fingerprint."""
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    return {
        "name": cfg.annotation,
        "model_name": spec.name,
        "config": job.config,
        "lineage": lineage(job.command, inputs),
        "versions": versions,
        "written_by": [{"command": job.command, "engine": job.config["engine"], "versions": versions}],
    }


def _print_back_offs(engine: Engine) -> None:
    if given_up := getattr(engine, "num_given_up", 0):
        console.print(
            f"{given_up} continuations could not be had (no room in the server's context, or each try failed): they count as "
            "undecided. A longer context, or more of engine.retries and engine.timeout_s, may give them in another annotation"
        )
    if back_offs := getattr(engine, "back_offs", 0):
        console.print(
            f"Memory for keys and values ran short {back_offs} times, and {getattr(engine, 'lost_tokens', 0):,} tokens were "
            "decoded again: "
            "fewer engine.max_rows, or a larger engine.kv_budget_mb where there is room, save that"
        )


def _finish(store: AnnotationStore, job: Job, *, shard: Shard, loggers: Sequence[Logger], max_new_tokens: int) -> None:
    """What is said and written once this shard's units are there: of the whole, if it was the last."""
    if state := store.unfinished_shards():
        done = f"{str(shard).capitalize()} is done. {store.folder} is {unfinished_message(state)}"
        console.print(done, markup=False)
        return
    print_summary(store, job, max_new_tokens=max_new_tokens)
    write_annotation_card(store)
    log_totals(loggers, _totals(store.manifest()))
    log_made(loggers, annotation_link(store.folder))


def numerics(engine: Engine) -> dict[str, Any]:
    """What may turn a near tie, and so an outcome: a part of the fingerprint. Exact engines can stand in for each other."""
    return engine.facts() if engine.exact else {**engine.facts(), "exact": False}


def _as_stored(found: dict[str, Any], store: AnnotationStore) -> dict[str, Any]:
    """A server's probe of its weights is never the same to the last digit: one that is near enough is the stored one."""
    if not (store.folder / "manifest.json").exists():
        return found
    return with_stored_probe(found, store.manifest()["fingerprint"]["numerics"], of=str(store.folder))


def _run_facts(cfg: AnnotateConfig, job: Job, *, model: str, data: str, inputs: tuple[Link, ...]) -> RunFacts:
    """What the loggers are told: the shards of an annotation are one group."""
    return RunFacts(
        job.folder,
        name=cfg.annotation + (f"-shard{cfg.shard}" if cfg.num_shards > 1 else ""),
        group=cfg.annotation,
        job_type="annotate",
        tags=(f"model:{model}", f"data:{data}", f"annotation:{cfg.annotation}"),
        config=job.config,
        command=job.command,
        inputs=inputs,
    )


def _totals(manifest: dict[str, Any]) -> dict[str, float]:
    """Of the whole annotation, from its first unit on: the manifest's counts and compute."""
    found = {**manifest["counts"], **manifest["compute"]}
    return {f"annotation/{name.replace(' ', '_')}": value for name, value in found.items()}


def _require_annotation(store: AnnotationStore) -> None:
    """Where only cells are to be filled: that there are any, and that no shard has yet to make some."""
    if not (store.folder / "manifest.json").exists():
        raise ConfigError(
            f"complete=true fills an existing annotation, but {store.folder} holds none; annotate first without it"
        )
    state = store.unfinished_shards()
    if state and not state["request"]["fills_only"]:
        raise ConfigError(
            f"complete=true fills an annotation that is there as a whole, but {store.folder} is {unfinished_message(state)}"
        )


def _annotate_units(
    store: AnnotationStore, annotator: Annotator, *, plan: Plan, shard: Shard, loggers: Sequence[Logger]
) -> None:
    """Annotate the shard's units, but for what is committed already."""
    records = store.units()
    units = {u: unit for u, unit in enumerate(plan.units(records)) if shard.has(u)}
    missing = [u for u in plan.to_annotate(records) if u in units]
    of_shard = "" if shard == WHOLE else f", {shard}"
    if len(missing) < len(units):
        console.print(
            f"Resuming {store.folder}{of_shard}: {len(units) - len(missing)} of {len(units)} units are there already"
        )
    if not missing:
        return
    todo = sum(len(units[u]) for u in missing)
    console.print(
        f"Annotating {todo} problems{of_shard}; at most {todo * annotator.budget.max_new_tokens:,} tokens to solve them. "
        "The estimate of the whole follows once the first are solved."
    )
    with progress("Annotating", total=todo) as bar:
        watch = Watch(bar, problems_total=todo, short_circuit=annotator.short_circuit, k=annotator.num_alternatives)
        annotator.on_solved, annotator.on_plan, annotator.on_fork = watch.on_solved, watch.on_plan, watch.on_fork
        for u in missing:
            watch.unit_starts(len(units[u]))
            unit = annotator.fresh(units[u])
            store.commit(
                u,
                rows=unit.rows,
                problems=unit.problems,
                facts={
                    "problem_ids": ids_hash(units[u]),
                    "num_alternatives": plan.num_alternatives,
                    "complete": plan.every_outcome,
                    "counts": unit.counts,
                    "compute": unit.compute,
                },
            )
            critical = critical_fraction(unit.rows, num_alternatives=annotator.num_alternatives)
            watch.unit_done(critical)
            log_values(loggers, {**_of_unit(unit), "annotate/critical_fraction": critical}, step=u)


def _of_unit(unit: Unit) -> dict[str, float]:
    """What a unit logs, beside its share of critical tokens."""
    tokens = sum(value for name, value in unit.compute.items() if name.endswith("_tokens"))
    seconds = unit.compute["solve_seconds"] + unit.compute["counterfactual_seconds"]
    return {
        "annotate/problems": unit.counts["problems"],
        "annotate/responses": len(unit.rows),
        "annotate/continuations": unit.counts["forks"],
        "annotate/tokens": tokens,
        "annotate/tokens_per_s": tokens / max(seconds, 1e-9),
    }


def _fill_units(store: AnnotationStore, annotator: Annotator, *, plan: Plan, shard: Shard) -> None:
    """Extend the shard's committed units to more alternatives, or to every outcome, where the plan asks for it."""
    records = store.units()
    todo = [u for u in plan.to_fill(records) if shard.has(u)]
    if not todo:
        return
    with progress("Filling untried cells", total=len(todo)) as bar:
        for u in todo:
            record = records[u]
            rows, tally, compute = annotator.filled(store.unit_rows(u))
            facts = {key: value for key, value in record.items() if key not in ("rows", "problems")}
            facts |= {
                "num_alternatives": max(record["num_alternatives"], plan.num_alternatives),
                "complete": plan.every_outcome,
                "counts": _added(record["counts"], tally_counts(tally)),
                "compute": _added(record["compute"], compute),
            }
            store.commit(u, rows=rows, problems=store.unit_problems(u), facts=facts)
            bar.advance(facts=f"{tally.forks:,} continuations")


def _added(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {key: a.get(key, 0) + b.get(key, 0) for key in {**a, **b}}


@dataclass(slots=True)
class Watch:
    """Turns the annotator's events into one bar: problems done, solved, annotated, critical share, tokens/s."""

    bar: Bar
    problems_total: int
    short_circuit: bool
    k: int
    annotated: int = 0
    solved: int = 0
    tokens: int = 0
    forks: int = 0
    critical: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _unit_problems: int = 0
    _unit_done: float = 0.0
    _unit_forks: float = 1.0
    _estimated: bool = False

    def unit_starts(self, problems: int) -> None:
        self._unit_problems, self._unit_done = problems, 0.0

    def on_solved(self, completion: Completion) -> None:
        self.tokens += completion.num_decoded
        self.solved += 1
        self._advance(0.1)

    def on_plan(self, kept: Sequence[Solved]) -> None:
        lengths = np.array([len(s.completion.ids) for s in kept if s.completion], dtype=float)
        self.annotated += len(kept)
        share = FORKS_PER_POSITION / 2 if self.short_circuit else 1.0
        self._unit_forks = max(1.0, share * self.k * lengths.sum())
        if not self._estimated:
            self._estimated = True
            # A fork at position t decodes about R - t tokens: R^2 / 2 a response and alternative.
            per_problem = share * self.k * (lengths**2).sum() / 2 / max(1, self._unit_problems)
            rate = self.tokens / max(1e-9, time.monotonic() - self.started)
            whole = per_problem * self.problems_total
            console.print(
                f"Estimate from the first {self._unit_problems} problems ({len(kept)} to annotate, "
                f"{lengths.mean() if len(lengths) else 0:.0f} tokens each): {whole:,.0f} tokens"
                # Given responses were not decoded, so there is no speed yet.
                + (f", about {whole / rate:,.0f} s at the {rate:,.0f} tokens/s of solving" if self.tokens else "")
            )

    def on_fork(self, completion: Completion) -> None:
        self.tokens += completion.num_decoded
        self.forks += 1
        self._advance(0.9 * self._unit_problems / self._unit_forks)

    def unit_done(self, fraction: float) -> None:
        if not np.isnan(fraction):
            self.critical.append(fraction)
        self._advance(self._unit_problems - self._unit_done)

    def _advance(self, problems: float) -> None:
        problems = min(problems, self._unit_problems - self._unit_done)
        self._unit_done += problems
        rate = self.tokens / max(1e-9, time.monotonic() - self.started)
        critical = f"{np.mean(self.critical):.0%}" if self.critical else "-"
        answered = f"answered {self.solved} " if self.solved else ""  # nothing is solved where responses are given
        self.bar.advance(
            problems,
            facts=f"{answered}annotated {self.annotated} critical {critical} "
            f"continuations {self.forks:,} {rate:,.0f} tokens/s",
        )
