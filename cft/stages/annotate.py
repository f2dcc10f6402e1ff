"""The annotate stage: problems -> units -> store, with an estimate, live progress and a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cft import run_log
from cft.annotation import rollouts
from cft.annotation.annotator import Unit
from cft.annotation.responses import GIVEN, wanted
from cft.annotation.sampled import COLUMNS
from cft.annotation.shards import WHOLE, Part, Shard, unfinished_message
from cft.annotation.store import AnnotationStore, check_name
from cft.annotation.units import Plan, Records, ids_hash
from cft.benchmarks.sets import verifier_for
from cft.config.build import ConfigError, build
from cft.config.schema import AnnotateConfig, Split
from cft.console import console, progress
from cft.data.rows_as_problems import problems_of, wants_answers, with_answers
from cft.data.sources import Splits
from cft.engines.factory import device_beside
from cft.engines.refusals import require_samples
from cft.engines.server.probe import with_stored_probe
from cft.fleets.base import Crew, Facts, Fleet, FleetError, left_out_message, package_facts
from cft.loggers.build import RunFacts, log_made, log_totals, log_values, logging_to
from cft.masks.critical import critical_fraction
from cft.models.lazy import LazyModel
from cft.models.load import ModelSpec, load_tokenizer
from cft.positions import Positions, Spans
from cft.prompts.chat import prompting
from cft.quiet import quiet_libraries
from cft.runs.annotation_card import write_annotation_card
from cft.runs.job import Job
from cft.runs.lineage import Link, annotation_link, lineage, model_inputs
from cft.stages.annotation_estimate import print_estimate
from cft.stages.annotation_progress import RIGHT, Watch
from cft.stages.annotation_summary import print_summary
from cft.stages.annotation_worker import (
    Done,
    Filled,
    MakeAnnotating,
    Problems,
    StoredRows,
    rollout_design,
    sample_design,
)
from cft.stages.rollout_summary import print_rollouts
from cft.types import Outcome, Problem
from cft.verifiers import verifier_fingerprint

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


def annotate(cfg: AnnotateConfig, job: Job) -> Path:
    """Run or resume the annotation that `cfg` describes; return the store's folder."""
    quiet_libraries()
    fleet: Fleet = build(cfg.fleet)
    store = AnnotationStore(Path(cfg.annotations_dir) / check_name(cfg.annotation, annotations_dir=cfg.annotations_dir))
    splits = problems_of(build(cfg.data))
    if wants_answers(splits):
        splits = with_answers(splits, thinking=cfg.verify.thinking.tags)
        console.print(
            "Gold answers: the final answers of the given responses, unless data.answer_field provides others"
        )
    verifier = verifier_for(
        splits, chosen=build(cfg.verifier), thinking=cfg.verify.thinking.tags, strip=cfg.verify.strip
    )
    graded_by = verifier_fingerprint(verifier)  # raises an error for an invalid verifier before anything is loaded
    positions: Positions = build(cfg.positions)
    plan, shard = _plan(cfg, splits, positions), Shard(cfg.shard, cfg.num_shards)
    _print_problems(splits, plan, split=cfg.split)
    if isinstance(positions, Spans):
        positions.require_named({problem.id for problem in plan.problems}, data=splits.name)
    if cfg.complete:
        _require_annotation(store)
    spec: ModelSpec = build(cfg.model)
    _require_engine_that_samples(cfg)
    make = MakeAnnotating.of(cfg, verifier=verifier, positions=positions, every_outcome=plan.every_outcome)
    inputs = model_inputs(spec.path)
    if cfg.responses in GIVEN and not cfg.complete:
        print_estimate(cfg, spec, positions, _to_annotate(store.units(), plan=plan, shard=shard))
    with (
        fleet.crew(
            make,
            device=device_beside(build(cfg.engine), device=cfg.device),
            expected=lambda: _expected_facts(cfg, spec, graded_by=graded_by),
        ) as crew,
        logging_to(
            cfg.logger, lambda: _run_facts(cfg, job, model=spec.name, data=splits.name, inputs=inputs)
        ) as loggers,
    ):
        with store.writing(
            fingerprint=_conditions(cfg, crew.facts, store, spec=spec, splits=splits, positions=positions),
            info=_origin(cfg, job, spec=spec, inputs=inputs),
            part=Part(shard, plan.request(), plan.to_do, command=job.command_without("shard"), in_order=crew.in_order),
            further_columns=_further_columns(cfg, positions),
        ):
            run_log.write_to(job.folder)  # one per shard and per resumption
            counts = _annotate_units(cfg, store, crew, plan=plan, shard=shard, loggers=loggers)
            counts += _fill_units(store, crew, plan=plan, shard=shard)
        _print_engine_counts(counts)
        if crew.left_out:
            raise FleetError(
                left_out_message(crew.left_out, kept=f"The other units are in {store.folder}.", command=job.command)
            )
        _finish(store, job, shard=shard, loggers=loggers, problems=plan.problems, max_new_tokens=cfg.max_new_tokens)
    return store.folder


def _expected_facts(cfg: AnnotateConfig, spec: ModelSpec, *, graded_by: str) -> Facts:
    """Facts that every worker must have, as found on this machine; weights are hashed from their files if possible."""
    prompt, tokenizer = build(cfg.prompt), load_tokenizer(spec)
    model = LazyModel(spec, tokenizer, ends=[prompt.end_id(tokenizer)], device="cpu")
    return {
        **prompting(prompt, tokenizer),
        "weights": model.weights() if build(cfg.engine).hashes_weights else "",
        "eos_ids": list(model.facts.eos_ids),
        "verifier": graded_by,
        "packages": package_facts(),
    }


def _plan(cfg: AnnotateConfig, splits: Splits, positions: Positions) -> Plan:
    problems = splits.of(cfg.split)
    asked = len(problems) if cfg.limit < 0 else min(cfg.limit, len(problems))
    if rollout_design(cfg):
        return Plan(problems, asked, cfg.unit_size, num_alternatives=0, every_outcome=False, fills_only=False)
    return Plan(
        problems,
        asked=asked,
        unit_size=cfg.unit_size,
        num_alternatives=cfg.num_alternatives,
        every_outcome=cfg.complete or not cfg.short_circuit,
        fills_only=cfg.complete,
        every_position=cfg.complete or not positions.settings(),
    )


def _require_engine_that_samples(cfg: AnnotateConfig) -> None:
    make_engine = build(cfg.engine)
    if rollout_design(cfg):
        require_samples(make_engine, num_samples=cfg.num_samples, key="num_samples")
    if sample_design(cfg) and not make_engine.samples:
        raise ConfigError(
            f"evidence=sampled: engine={make_engine.name} decodes greedily only; expected evidence=greedy, or an engine that "
            "draws samples which do not depend on the batch, such as engine=shared_prefix"
        )


def _print_problems(splits: Splits, plan: Plan, *, split: Split) -> None:
    sizes = ", ".join(f"{name} {len(getattr(splits, name))}" for name in ("train", "validation", "test"))
    console.print(f"Problems of {splits.name}: {sizes}; asked for: {plan.asked} of {split}", markup=False)
    for reason, count in splits.dropped.items():
        console.print(f"Problems dropped: {count} ({reason})")


def _conditions(
    cfg: AnnotateConfig,
    facts: Facts,
    store: AnnotationStore,
    *,
    spec: ModelSpec,
    splits: Splits,
    positions: Positions,
) -> dict[str, Any]:
    """The conditions under which every unit is made: the content of the annotation's fingerprint.

    Settings that do not change the default evidence are omitted. facts: of the workers.
    """
    chosen, samples, rolled_out = positions.settings(), sample_design(cfg), rollout_design(cfg)
    return {
        **({"rollouts": rolled_out.settings()} if rolled_out else {}),
        **({"positions": chosen} if chosen else {}),
        **({"evidence": samples.settings()} if samples else {}),
        "model": {
            "path": spec.path,
            "revision": spec.revision,
            "weights": facts["weights"],
            "dtype": spec.dtype,
        },
        "tokenizer": facts["tokenizer"],
        "prompt": facts["prompt"],
        "decoding": {"responses": cfg.responses, "max_new_tokens": cfg.max_new_tokens, "eos_ids": facts["eos_ids"]},
        "verifier": facts["verifier"],
        "data": {"source": splits.name, "split": cfg.split, "sha256": splits.fingerprint},
        "unit_size": cfg.unit_size,
        "replay_fraction": cfg.replay_fraction,
        "numerics": _numerics(facts, store),
    }


def _further_columns(cfg: AnnotateConfig, positions: Positions) -> tuple[str, ...]:
    """Additional columns of every unit: all files of a table have the same columns."""
    if rollout_design(cfg):
        return rollouts.COLUMNS
    wrong = ("verdict",) if wanted(cfg.responses) == Outcome.WRONG else ()
    return (*wrong, *(("prefix_outcome",) if positions.probes else ()), *(COLUMNS if sample_design(cfg) else ()))


def _origin(cfg: AnnotateConfig, job: Job, *, spec: ModelSpec, inputs: tuple[Link, ...]) -> dict[str, Any]:
    """Facts in the manifest other than the fingerprint."""
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    return {
        "name": cfg.annotation,
        "model_name": spec.name,
        "config": job.config,
        "lineage": lineage(job.command, inputs),
        "versions": versions,
        "written_by": [{"command": job.command, "engine": job.config["engine"], "versions": versions}],
    }


def _print_engine_counts(counts: Counter[str]) -> None:
    if given_up := counts["num_given_up"]:
        console.print(
            f"{given_up} continuations could not be decoded (no room in the server's context, or every attempt failed): they "
            "count as undecided. A longer context, or higher engine.retries and engine.timeout_s, may help in a new annotation"
        )
    if back_offs := counts["back_offs"]:
        console.print(
            f"KV cache memory ran out {back_offs} times, and {counts['lost_tokens']:,} tokens were decoded again: lower "
            "engine.max_rows or, if memory is available, raise engine.kv_budget_mb to avoid this"
        )


def _finish(
    store: AnnotationStore,
    job: Job,
    *,
    shard: Shard,
    loggers: Sequence[Logger],
    problems: Sequence[Problem],
    max_new_tokens: int,
) -> None:
    """After this shard's units are done: print its state or, if all shards are done, the summary, and write the card."""
    if state := store.unfinished_shards():
        done = f"{str(shard).capitalize()} is done. {store.folder} is {unfinished_message(state)}"
        console.print(done, markup=False)
        return
    if rollouts.holds_rollouts(store.manifest()):
        print_rollouts(store, job, max_new_tokens=max_new_tokens)
    else:
        print_summary(store, job, problems_asked=problems, max_new_tokens=max_new_tokens)
    write_annotation_card(store)
    log_totals(loggers, _totals(store.manifest()))
    log_made(loggers, annotation_link(store.folder))


def _numerics(facts: Facts, store: AnnotationStore) -> dict[str, Any]:
    """Numerical conditions that may change an outcome.

    A server's probe of its weights varies in the last digits, so a probe close to the stored one is replaced by the stored one.
    """
    found = facts["numerics"] | ({"probe": facts["probe"]} if facts["probe"] else {})
    if not (store.folder / "manifest.json").exists():
        return found
    return with_stored_probe(found, store.manifest()["fingerprint"]["numerics"], of=str(store.folder))


def _run_facts(cfg: AnnotateConfig, job: Job, *, model: str, data: str, inputs: tuple[Link, ...]) -> RunFacts:
    """Facts for the loggers; the shards of an annotation form one group."""
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
    """Counts and compute of the whole annotation, from the manifest."""
    found = {**manifest["counts"], **manifest["compute"]}
    return {f"annotation/{name.replace(' ', '_')}": value for name, value in found.items()}


def _require_annotation(store: AnnotationStore) -> None:
    """Raises ConfigError unless the store holds an annotation with all shards finished, so that it can be completed."""
    if not (store.folder / "manifest.json").exists():
        raise ConfigError(
            f"complete=true completes an existing annotation, but {store.folder} holds none; first annotate without it"
        )
    state = store.unfinished_shards()
    if state and not state["request"]["fills_only"]:
        raise ConfigError(
            f"complete=true completes an annotation with all shards finished, but {store.folder} is {unfinished_message(state)}"
        )


def _annotate_units(
    cfg: AnnotateConfig,
    store: AnnotationStore,
    crew: Crew[Problems | StoredRows, Done],
    *,
    plan: Plan,
    shard: Shard,
    loggers: Sequence[Logger],
) -> Counter[str]:
    """Annotate the shard's units that are not committed yet. Returns the engines' counts."""
    records = store.units()
    units = {u: unit for u, unit in enumerate(plan.units(records)) if shard.has(u)}
    missing = [u for u in plan.to_annotate(records) if u in units]
    of_shard = "" if shard == WHOLE else f", {shard}"
    if len(missing) < len(units):
        console.print(
            f"Resuming {store.folder}{of_shard}: {len(units) - len(missing)} of {len(units)} units are already done"
        )
    if not missing:
        return Counter()
    todo = sum(len(units[u]) for u in missing)
    design = rollout_design(cfg)
    console.print(_beginning(cfg, design, problems=todo, of_shard=of_shard))
    counts = Counter[str]()
    with progress("Rolling out" if design else "Annotating", total=todo) as bar:
        deciding = "critical" if wanted(cfg.responses) == Outcome.RIGHT else "turning"
        watch = Watch(bar, units, word=RIGHT if design else deciding)
        for u, done in crew.map(((u, Problems(tuple(units[u]))) for u in missing), watch=watch.update):
            unit = done.result
            assert isinstance(unit, Unit)
            counts += done.counts
            store.commit(
                u,
                rows=unit.rows,
                problems=unit.problems,
                facts={
                    "problem_ids": ids_hash(units[u]),
                    **plan.facts(),
                    "counts": unit.counts,
                    "compute": unit.compute,
                },
            )
            fraction = _deciding_fraction(unit, plan, design)
            watch.unit_done(u, unit, critical=fraction)
            log_values(loggers, {**_unit_metrics(unit), f"annotate/{watch.word}_fraction": fraction}, step=u)
    return counts


def _beginning(cfg: AnnotateConfig, design: rollouts.RolloutDesign | None, *, problems: int, of_shard: str) -> str:
    """Message at the start: what will be done, with an upper bound of the tokens."""
    if design:
        many = problems * len(design.samples())
        return (
            f"Rolling out {many:,} {'sampled' if design.num_samples else 'greedy'} responses to {problems} problems{of_shard}; "
            f"at most {many * cfg.max_new_tokens:,} tokens"
        )
    solving = (
        f"; at most {problems * cfg.max_new_tokens:,} tokens to solve them. The estimate of the whole follows once the first "
        "are solved."
    )
    return f"Annotating {problems} problems{of_shard}{'' if cfg.responses in GIVEN else solving}"


def _deciding_fraction(unit: Unit, plan: Plan, design: rollouts.RolloutDesign | None) -> float:
    """Fraction of a unit's tokens that are critical or turning; for rollouts, of its decided responses that are right."""
    if design:
        return rollouts.pass_rate(row.verdict for row in unit.rows)
    return critical_fraction(unit.rows, num_alternatives=plan.num_alternatives)


def _to_annotate(records: Records, *, plan: Plan, shard: Shard) -> list[Problem]:
    """The problems of the shard's units that are not committed yet."""
    units = plan.units(records)
    return [problem for u in plan.to_annotate(records) if shard.has(u) for problem in units[u]]


def _unit_metrics(unit: Unit) -> dict[str, float]:
    """Metrics of a unit, besides its fraction of critical tokens."""
    tokens = sum(value for name, value in unit.compute.items() if name.endswith("_tokens"))
    seconds = sum(value for name, value in unit.compute.items() if name.endswith("_seconds"))
    return {
        "annotate/problems": unit.counts["problems"],
        "annotate/responses": len(unit.rows),
        "annotate/continuations": unit.counts.get("forks", 0),
        "annotate/tokens": tokens,
        "annotate/tokens_per_s": tokens / max(seconds, 1e-9),
    }


def _fill_units(
    store: AnnotationStore, crew: Crew[Problems | StoredRows, Done], *, plan: Plan, shard: Shard
) -> Counter[str]:
    """Extend the shard's committed units to more alternatives or to all outcomes, if the plan requires it.

    Returns:
        The engines' counts.
    """
    records = store.units()
    todo = [u for u in plan.to_fill(records) if shard.has(u)]
    if not todo:
        return Counter()
    counts = Counter[str]()
    with progress("Filling untried cells", total=len(todo)) as bar:
        for u, done in crew.map((u, StoredRows(tuple(store.unit_rows(u)))) for u in todo):
            filled, record = done.result, records[u]
            assert isinstance(filled, Filled)
            counts += done.counts
            facts = {key: value for key, value in record.items() if key not in ("rows", "problems", "every_position")}
            facts |= {
                **plan.facts(record),
                "counts": _added(record["counts"], filled.counts),
                "compute": _added(record["compute"], filled.compute),
            }
            store.commit(u, rows=filled.rows, problems=store.unit_problems(u), facts=facts)
            bar.advance(facts=f"{filled.counts['forks']:,} continuations")
    return counts


def _added(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {key: a.get(key, 0) + b.get(key, 0) for key in {**a, **b}}
