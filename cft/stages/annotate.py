"""Annotation from a configuration: problems -> units -> store, with an estimate, live progress and a summary."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from cft.annotator import Annotator, Solved, tally_counts
from cft.config import ConfigError, build, redacted
from cft.device import place
from cft.judge import Judge
from cft.masks import critical_fraction
from cft.models import (
    eos_ids,
    load_causal_lm,
    load_tokenizer,
    require_plain_attention,
    template_hash,
    tokenizer_hash,
    weights_hash,
)
from cft.progress import Bar, console, progress
from cft.quiet import quiet_libraries
from cft.shards import WHOLE, Part, Shard, unfinished_message
from cft.store import AnnotationStore, check_name
from cft.types import Budget, Completion
from cft.units import Plan, ids_hash
from cft.verify import verifier_fingerprint
from cft.verify_pool import VerifierPool

FORKS_PER_POSITION = 1.5  # of two alternatives under short-circuit; sharpened as units finish
RL_SAMPLES = 8  # of a group-relative policy-gradient step, for the comparison of cost


def annotate(cfg: DictConfig) -> Path:
    """Run or resume the annotation `cfg` describes; returns the store's folder."""
    quiet_libraries()
    store = AnnotationStore(Path(cfg.annotations_dir) / check_name(cfg.annotation, annotations_dir=cfg.annotations_dir))
    splits = build(cfg.data)
    problems = splits.of(cfg.split)
    plan = Plan(
        problems,
        asked=len(problems) if cfg.limit < 0 else min(cfg.limit, len(problems)),
        unit_size=cfg.unit_size,
        num_alternatives=cfg.num_alternatives,
        every_outcome=cfg.complete or not cfg.short_circuit,
        fills_only=cfg.complete,
    )
    shard = Shard(cfg.shard, cfg.num_shards)
    part = Part(shard, plan.request(), plan.to_do, command=_command_of_all_shards(cfg))
    for reason, count in splits.dropped.items():
        console.print(f"Problems dropped: {count} ({reason})")
    if cfg.complete:
        _require_annotation(store)
    spec, verifier, prompt = build(cfg.model), build(cfg.verifier), build(cfg.prompt)
    tokenizer, model = load_tokenizer(spec), load_causal_lm(spec)
    require_plain_attention(model)
    place(model, device=cfg.device)
    eos = eos_ids(model, tokenizer)
    fingerprint = {
        "model": {"path": spec.path, "revision": spec.revision, "weights": weights_hash(model), "dtype": spec.dtype},
        "tokenizer": tokenizer_hash(tokenizer),
        "prompt": {"prompt": prompt.fingerprint(), "template": template_hash(tokenizer)},
        "decoding": {"responses": cfg.responses, "max_new_tokens": cfg.max_new_tokens, "eos_ids": sorted(eos)},
        "verifier": verifier_fingerprint(verifier),
        "data": {"source": splits.name, "split": cfg.split, "sha256": splits.fingerprint},
        "unit_size": cfg.unit_size,
        "replay_fraction": cfg.replay_fraction,
    }
    info = {
        "name": cfg.annotation,
        "model_name": spec.name,
        "config": redacted(cfg),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }
    with (
        VerifierPool(verifier, workers=cfg.verify.workers, timeout_s=cfg.verify.timeout_s) as pool,
        store.writing(fingerprint=fingerprint, info=info, part=part),
    ):
        annotator = Annotator(
            engine=build(cfg.engine)(model, eos),
            tokenizer=tokenizer,
            prompt=prompt,
            judge=Judge(tokenizer, pool.verify_all, verifier.final),
            budget=Budget(cfg.max_new_tokens),
            eos_ids=eos,
            max_positions=model.config.max_position_embeddings,
            num_alternatives=cfg.num_alternatives,
            short_circuit=not plan.every_outcome,
            replay_fraction=cfg.replay_fraction,
            responses=cfg.responses,
        )
        _annotate_units(store, annotator, plan=plan, shard=shard)
        _fill_units(store, annotator, plan=plan, shard=shard)
    if state := store.unfinished_shards():
        done = f"{str(shard).capitalize()} is done. {store.folder} is {unfinished_message(state)}"
        console.print(done, markup=False)
    else:
        _print_summary(store, annotator)
    return store.folder


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


def _annotate_units(store: AnnotationStore, annotator: Annotator, *, plan: Plan, shard: Shard) -> None:
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
            watch.unit_done(critical_fraction(unit.rows, num_alternatives=annotator.num_alternatives))


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


def _command_of_all_shards(cfg: DictConfig) -> str:
    """What was typed for this shard, less its number."""
    if not HydraConfig.initialized():
        return shlex.join(["python", "annotate.py", f"annotation={cfg.annotation}", f"num_shards={cfg.num_shards}"])
    overrides = HydraConfig.get().overrides.task
    return shlex.join(["python", "annotate.py", *(o for o in overrides if o.lstrip("+").split("=")[0] != "shard")])


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
                f"{lengths.mean() if len(lengths) else 0:.0f} tokens each): {whole:,.0f} tokens, "
                f"about {whole / max(rate, 1e-9):,.0f} s at the {rate:,.0f} tokens/s of solving"
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
        self.bar.advance(
            problems,
            facts=f"answered {self.solved} annotated {self.annotated} critical {critical} "
            f"continuations {self.forks:,} {rate:,.0f} tokens/s",
        )


def _print_summary(store: AnnotationStore, annotator: Annotator) -> None:
    manifest, rows, problems = store.manifest(), store.rows(), store.problems()
    counts, compute = manifest["counts"], manifest["compute"]
    table = Table(title=f"Annotation {store.folder}", show_header=False, title_justify="left")
    table.add_row("problems", f"{len(problems):,}")
    statuses: dict[str, int] = {}
    for record in problems:
        statuses[record.status] = statuses.get(record.status, 0) + 1
    for status, count in sorted(statuses.items(), key=lambda item: -item[1]):
        table.add_row(f"  {status}", f"{count:,} ({count / len(problems):.0%})")
    if rows:
        fraction = critical_fraction(rows, num_alternatives=min(row.alt_ids.shape[1] for row in rows))
        table.add_row("response tokens", f"{sum(len(row.response_ids) for row in rows):,}")
        table.add_row("critical", f"{fraction:.1%}")
    table.add_row("continuations", f"{counts.get('forks', 0):,}")
    table.add_row("settled by the reference", f"{counts.get('settled_by_reference', 0):,} (near ties)")
    table.add_row("self-replay flips", f"{counts.get('replay_flips', 0)} of {counts.get('replays', 0)}")
    spent = sum(compute.get(f"{part}_tokens", 0) for part in ("solve", "counterfactual", "speculative"))
    seconds = compute.get("solve_seconds", 0) + compute.get("counterfactual_seconds", 0)
    table.add_row("tokens decoded", f"{spent:,} in {seconds:,.0f} s ({spent / max(seconds, 1e-9):,.0f} tokens/s)")
    lengths = [r.response_tokens for r in problems if r.response_tokens]
    if lengths:
        rl = RL_SAMPLES * sum(lengths)
        table.add_row(
            f"one {RL_SAMPLES}-sample RL step",
            f"{rl:,} tokens on the same problems: annotation cost {spent / rl:,.1f} such steps",
        )
    console.print(table)
    if not rows:
        cut_off = statuses.get("cut off", 0) + statuses.get("near limit", 0)
        console.print(
            "No response was both finished and right, so there is nothing to annotate and nothing to train on. "
            + (f"{cut_off} were cut off: raise max_new_tokens={annotator.budget.max_new_tokens}. " if cut_off else "")
            + "Take easier problems (data=...), a stronger model (model=...), or annotate the data's own solutions "
            "(responses=given)."
        )
        return
    solved_lengths = [len(row.response_ids) for row in rows]
    p95 = float(np.percentile(solved_lengths, 95))
    if annotator.budget.max_new_tokens < 2 * p95:
        console.print(
            f"Note: max_new_tokens={annotator.budget.max_new_tokens} is less than twice the 95th percentile of the solved "
            f"lengths ({p95:.0f}): many continuations may be cut off. Annotate again with max_new_tokens={int(2 * p95) + 1}."
        )
    console.print(f"Train on it: {train_command(store)}")


def train_command(store: AnnotationStore) -> str:
    """What to type next: the annotated model and prompt, and the same problems as benchmark."""
    words = ["python", "train.py", f"data.annotation={store.folder.name}", f"annotations_dir={store.folder.parent}"]
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        defaults = {"model": "tiny_arith", "prompt": "chat", "verifier": "numeric", "data": "arithmetic"}
        for group, default in defaults.items():
            if (chosen := hydra.runtime.choices[group]) != default:
                words.append(f"{'benchmark' if group == 'data' else group}={chosen}")
        for override in hydra.overrides.task:
            if override.startswith(("model.", "prompt.", "data.dir=")):
                words.append(override)
            elif override.startswith("data."):
                words.append(f"benchmark.{override.removeprefix('data.')}")
    return shlex.join(words)
