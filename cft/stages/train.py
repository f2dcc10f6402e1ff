"""Training from a configuration: annotation x mask x weighting -> checkpoints, Hugging Face export, results.json."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from transformers import PreTrainedModel

from cft.benchmarks.sets import verifier_for
from cft.config.build import ConfigError, build, redacted
from cft.config.schema import Split
from cft.console import console
from cft.data.annotated import AnnotatedDataModule
from cft.data.columns import columns_for, needs_live
from cft.data.problem_rows import normalized
from cft.data.sources import Splits
from cft.evaluation.base import base_accuracy
from cft.evaluation.evaluation import (
    SampleRequest,
    Solver,
    accuracy_sentence,
    summarize,
    verdict_counts,
    write_samples,
)
from cft.evaluation.room import Room, require_room, room_for
from cft.files import exclusive
from cft.loggers.build import close_loggers, log_made, log_transcripts
from cft.masks.base import Critical
from cft.models.architecture import context_length
from cft.models.cpu.kernels import use_kernels
from cft.models.device import place
from cft.models.export import export_adapter, require_exportable
from cft.models.load import (
    eos_ids,
    export,
    load_causal_lm,
    load_tokenizer,
    require_plain_attention,
    weights_hash,
)
from cft.models.load import require_room as require_length
from cft.prompts.chat import Prompt, prompt_conflict, prompting
from cft.quiet import quiet_libraries
from cft.references.models import starts_as_reference
from cft.runs.arm import ARM_KEYS, arm_of
from cft.runs.cards import write_model_card
from cft.runs.lineage import annotation_link, checkpoint_link, lineage, model_inputs
from cft.runs.results import RunResults, as_metrics
from cft.runs.run import (
    ADAPTER,
    EXPORT,
    TRAINED_BY,
    RunContext,
    identity_of,
    run_context,
    settings_of,
)
from cft.training.calibration import calibrate
from cft.training.callbacks.interruption import Interruption
from cft.training.checkpointing.checkpoints import load_checkpoint
from cft.training.checkpointing.resume import Start, finished_accuracy, start_of
from cft.training.distributed.launcher import own_environment
from cft.training.distributed.sharding import is_sharded, release, trained_weights
from cft.training.fit import Fit, require_constructible
from cft.training.module import CausalLMModule, frozen_names
from cft.types import Problem
from cft.verifiers import other_verifier_note, verifier_fingerprint
from cft.verifiers.grader import Grader
from cft.verifiers.pool import VerifierPool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_PROBLEMS = Splits("", (), (), (), {}, "")  # a run that is neither validated on problems nor tested


def train(cfg: DictConfig, start: Start | None = None) -> float:
    """Greedy test accuracy (0-1) of the best epoch, NaN without evaluation problems; for sweepers.

    start: where another process of the same run found that it begins.
    """
    quiet_libraries()
    context = run_context()
    interruption = Interruption(max_hours=cfg.interruption.max_hours)
    start = start or start_of(cfg, context)
    if start.finished:
        return finished_accuracy(start.folder)
    # The ranks of a distributed run share the folder; the first one holds it for all.
    first = getattr(rank_zero_only, "rank", 0) == 0  # Lightning sets it from the environment
    console.quiet = not first
    with interruption.handlers(), own_environment(), exclusive(start.folder) if first else nullcontext():
        failed = True
        try:
            accuracy = _train(cfg, context, start, interruption)
            failed = False
            return accuracy
        finally:
            close_loggers(failed=failed)


def _train(cfg: DictConfig, context: RunContext, start: Start, interruption: Interruption) -> float:
    begun, folder = time.monotonic(), start.folder
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    spec, prompt = build(cfg.model), build(cfg.prompt)
    tokenizer = load_tokenizer(spec)
    asked = prompting(prompt, tokenizer)
    objective, reference = build(cfg.loss)(build(cfg.weighting)), build(cfg.reference)
    columns = columns_for(
        objective.needs, given=reference.gives, stored_logprob=reference.stored, grouping=build(cfg.groups)
    )
    splits = build(cfg.benchmark) if cfg.validation.problems or cfg.evaluation.problems else NO_PROBLEMS
    verifier = verifier_for(splits, chosen=build(cfg.verifier))
    judged_by = verifier_fingerprint(verifier)  # refuses a class that is no verifier before anything is loaded
    # Questions not to be trained on.
    exclude = frozenset(normalized(problem.question) for problem in (*splits.validation, *splits.test))
    data: AnnotatedDataModule = build(cfg.data)(
        build(cfg.mask),
        Critical(num_alternatives=cfg.probe.critical_alternatives),
        columns,
        cfg.annotations_dir,
        asked["tokenizer"],
        cfg.seed,
        exclude,
    )
    if not data.manifest.get("finished", True):
        console.print(
            f"Note: {data.store.folder} is unfinished (interrupted, or still being written); training on what is there. "
            "The cft annotate command that made it completes it."
        )
    if splits is not NO_PROBLEMS and (note := other_verifier_note(data.manifest["fingerprint"]["verifier"], judged_by)):
        console.print(note, markup=False)
    _require_same_prompt(data, asked, cfg.prompt)
    _require_metric(cfg.callbacks.best.monitor, data)
    require_constructible(cfg, folder)
    ends = [prompt.end_id(tokenizer)]
    model = load_causal_lm(spec, ends=ends)
    require_plain_attention(model)
    require_length(
        model,
        lengths={row.row_id: len(row.ids) for row in (*data.train_rows, *data.validation_rows)},
        remedy="lower data.max_tokens, or choose a model of a longer context",
    )
    require_exportable(model, tokenizer)
    at_reference = starts_as_reference(model, columns=columns, manifest=data.manifest)
    device = "cpu" if cfg.trainer.accelerator == "cpu" else "auto"
    # With several processes Lightning gives each its device, and sharding moves block by block: all of a large model
    # may fit on none.
    place(model, device=device if cfg.trainer.devices == 1 else "cpu")
    use_kernels(model, kernels=cfg.compute.kernels)
    module = CausalLMModule(
        model,
        objective,
        optimizer=build(cfg.optimizer),
        schedule=cfg.schedule.shape,
        warmup_fraction=cfg.schedule.warmup_fraction,
        probe_every_n_steps=cfg.probe.every_n_steps,
        layout=cfg.compute.layout,
        reference=reference.attach(model) if needs_live(objective.needs, stored_logprob=reference.stored) else None,
    )
    positions = context_length(model.config)
    validation, tested = (
        _room(cfg, splits, part, tokenizer=tokenizer, prompt=prompt, context=positions)
        for part in ("validation", "evaluation")
    )
    for warning in data.warnings():
        console.print(f"Warning: {warning}", markup=False)
    calibration = calibrate(module.lm, [*data.validation_rows, *data.train_rows])
    facts = data.facts()
    console.print(
        f"Training {spec.name} ({sum(p.numel() for p in module.parameters()) / 1e6:.1f}M parameters) on "
        f"{facts['train_rows']:,} rows of {data.store.folder.name} ({facts['validation_rows']:,} more are held out for "
        f"validation); loss on {facts['eligible_fraction']:.0%} of "
        f"{facts['response_tokens']:,} response tokens -> {folder}"
    )
    with VerifierPool(verifier, workers=cfg.verify.workers, timeout_s=cfg.verify.timeout_s) as pool:

        def make_solver(model: PreTrainedModel) -> Solver:
            return Solver(
                build(cfg.engine)(model, eos_ids(model, tokenizer)),
                tokenizer,
                prompt,
                Grader(tokenizer, pool.verify_all),
                positions,
            )

        # Of several processes the first one alone: some engines keep a second copy of the weights.
        if (validation.run or tested.run) and getattr(rank_zero_only, "rank", 0) == 0:
            make_solver(model)  # what cannot decode this model says so now, not after the training
        base = None
        if (
            tested.run and cfg.evaluation.base and cfg.trainer.devices == 1
        ):  # several processes would have to wait for it
            decided_by = {
                "weights": weights_hash(model),
                "eos": eos_ids(model, tokenizer),
                "verifier": judged_by,
                "engine": redacted(cfg.engine),
                "context": positions,
                **asked,
            }
            base = interruption.unless_asked(
                lambda: base_accuracy(
                    lambda: make_solver(model),
                    tested.run,
                    max_new_tokens=cfg.evaluation.max_new_tokens,
                    decided_by=decided_by,
                ),
                otherwise=None,
            )
        fitted = Fit(cfg, context, start, interruption, module, data).run(validation.run, make_solver)
        trainer, seconds = fitted.trainer, fitted.history.seconds()
        if not trainer.is_global_zero:
            return float("nan")
        interruption.stop_if_asked()
        best = fitted.callbacks["best"]
        whole = load_causal_lm(spec, ends=ends) if is_sharded(model) else model
        best_epoch = _load_best(module, model, best, trainer, into=whole)
        if whole is not model:
            release(trainer, module)
        model = whole.eval()
        export(model, tokenizer, folder=folder / EXPORT, dtype=cfg.export.dtype)
        if spec.lora is not None:
            export_adapter(model, folder=folder / ADAPTER, base=spec.path, revision=spec.revision)
        place(model, device=device)  # Lightning leaves it on the CPU
        facts_of_run: dict[str, Any] = {
            "stage": "train",
            "run": folder.name,
            "arm": arm_of(cfg, context, ARM_KEYS),
            "identity": identity_of(
                settings := settings_of(cfg, TRAINED_BY) | data.settings() | fitted.history.replanned()
            ),
            "settings": settings,
            "seed": cfg.seed,
            "benchmark": splits.name,
            "split": "test",
            **tested.facts(),
            "validation": validation.facts(),
            "best_epoch": best_epoch,
            "best_validation": {"metric": best.monitor, "value": float(best.best_model_score)},
            "train_seconds": round(seconds, 2),
            "eligible_fraction": facts["eligible_fraction"],
            "calibration": calibration,
            "data": {
                "annotation": data.store.folder.name,
                "fingerprint": data.manifest["fingerprint_sha256"],
                "prompting": asked,
                **facts,
            },
            "budget": {
                "epochs": fitted.epochs(),
                "steps": trainer.global_step,
                "rows_per_step": cfg.data.batch_size * trainer.accumulate_grad_batches * trainer.world_size,
            },
            "starts_as_reference": at_reference,
            "base": base,
            "lineage": lineage((annotation_link(data.store.folder), *model_inputs(spec.path))),
        }
        facts_of_run |= interruption.unless_asked(
            lambda: _evaluated(cfg, folder, lambda: make_solver(model), tested.run, trainer), otherwise={}
        )
        interruption.stop_if_asked()
        facts_of_run["evaluation"]["verifier"] = judged_by
    results = RunResults(**facts_of_run)
    results.write(folder)
    write_model_card(folder)
    log_made(trainer.loggers, checkpoint_link(folder))
    accuracy = results.accuracy
    before = f" (before training {base['metrics']['eval/accuracy']['value']:.3f})" if base else ""
    measured = f"test accuracy {accuracy:.3f}{before}" if tested.run else "not tested (evaluation.problems=0)"
    if tested.run:
        console.print(accuracy_sentence(results.verdicts, not_run=len(tested.not_run)), markup=False)
    console.print(
        f"Done: {seconds:.0f} s of training, {time.monotonic() - begun:.0f} s in all; best epoch {best_epoch + 1} of "
        f"{fitted.epochs():g} (best_epoch {best_epoch} in results.json and metrics.csv, which count from 0); {measured}; "
        f"export: {folder / EXPORT}"
    )
    return accuracy


def _evaluated(
    cfg: DictConfig,
    folder: Path,
    make_solver: Callable[[], Solver],
    problems: tuple[Problem, ...],
    trainer: pl.Trainer,
) -> dict[str, Any]:
    """The entries of results.json that come of the test problems; every response goes to samples.parquet."""
    settings = cfg.evaluation
    request = SampleRequest(
        settings.num_samples, settings.temperature, settings.top_p, settings.seed, settings.max_new_tokens
    )
    entries: dict[str, Any] = {"evaluation": dataclasses.asdict(request)}
    if not problems:
        return {**entries, "verdicts": {}, "metrics": {}, "per_problem": {"id": [], "correct": []}}
    solver = make_solver()
    samples = solver.solve(problems, request=request, title="Evaluating")
    intervals, per_problem = summarize(samples, seed=settings.seed)
    write_samples(folder / "samples.parquet", samples, solver.tokenizer)
    log_transcripts(trainer.loggers, samples, solver.tokenizer)
    for logger in trainer.loggers:
        logger.log_metrics({name: i.value for name, i in intervals.items()}, step=trainer.global_step)
        logger.save()
    return {
        **entries,
        "verdicts": verdict_counts(samples),
        "metrics": as_metrics(intervals),
        "per_problem": per_problem,
    }


def _require_same_prompt(data: AnnotatedDataModule, asked: dict[str, Any], prompt: DictConfig) -> None:
    then = data.manifest["config"].get("prompt", {})
    annotated = {"prompt": data.manifest["fingerprint"]["prompt"]}
    if differing := prompt_conflict(annotated, asked, then_config=then, now_config=prompt):
        raise ConfigError(
            f"prompt: {differing} differs between {data.store.folder} and this run; set prompt=... as in the annotation, or "
            "annotate again"
        )


def _room(
    cfg: DictConfig,
    splits: Splits,
    part: Literal["validation", "evaluation"],
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    context: int,
) -> Room:
    """The problems of one part that can be run. Raises NoRoom before anything is trained."""
    split: Split = "validation" if part == "validation" else "test"
    limit, wanted = cfg.evaluation.max_new_tokens, cfg[part].problems
    problems = splits.of(split)[: wanted if wanted >= 0 else None] if wanted else ()
    room = room_for(
        problems,
        prompt_len=lambda problem: len(prompt.ids(tokenizer, problem.question)),
        context=context,
        max_new_tokens=limit,
    )
    if wanted:
        require_room(
            room,
            where=f"{splits.name}/{split}",
            key="evaluation.max_not_run",
            max_not_run=cfg.evaluation.max_not_run,
            max_new_tokens=limit,
        )
    return room


def _require_metric(monitor: str, data: AnnotatedDataModule) -> None:
    """The best epoch is chosen by a metric that will exist; found out before training, not after it."""
    if monitor == "val/loss" and not any((row.weight > 0).any() for row in data.validation_rows):
        raise ConfigError(
            f"callbacks.best.monitor=val/loss: {data.store.folder} gives {len(data.validation_rows)} validation rows, and "
            "the mask picks no token in them; raise data.validation_fraction, annotate more problems, or choose epochs "
            "by accuracy (callbacks=default)"
        )


def _load_best(
    module: CausalLMModule, model: PreTrainedModel, best: Any, trainer: pl.Trainer, *, into: PreTrainedModel
) -> int:
    """Put the weights that `model`, a part of the module, had in the best epoch into `into`; returns that epoch, from 0."""
    if not best.best_model_path:
        logged = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
        if best.monitor in logged:
            reason = "no finite value of it was logged in any epoch; look for a loss that is not finite in metrics.csv"
        elif logged:
            reason = f"no such metric was logged; choose one of {', '.join(logged)}"
        else:
            reason = "the training ended without a validation; leave the settings of the Trainer about it as they are"
        raise ConfigError(
            f"callbacks.best.monitor={best.monitor}: {reason}. There is no best epoch, so nothing is exported"
        )
    checkpoint = load_checkpoint(Path(best.best_model_path))
    found = into.load_state_dict(trained_weights(checkpoint, module, model), strict=False)
    if lacking := [*found.unexpected_keys, *({*found.missing_keys} - frozen_names(into))]:
        raise RuntimeError(f"{best.best_model_path}: holds other weights than the model: {sorted(lacking)[:6]}")
    return int(checkpoint["epoch"])
