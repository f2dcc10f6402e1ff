"""Training from a configuration: annotation x mask x weighting -> checkpoints, Hugging Face export, results.json."""

from __future__ import annotations

import dataclasses
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from cft.checkpoints import load_checkpoint
from cft.columns import columns_for, needs_live
from cft.config import ConfigError, build, redacted
from cft.data import AnnotatedDataModule
from cft.device import place
from cft.evaluation import SampleRequest, Solver, summarise, write_samples
from cft.files import exclusive
from cft.judge import Judge
from cft.loggers import RunFacts, close_loggers
from cft.masks import Critical
from cft.models import (
    eos_ids,
    export,
    load_causal_lm,
    load_tokenizer,
    require_plain_attention,
    template_hash,
    tokenizer_hash,
)
from cft.module import CausalLMModule
from cft.problem_rows import normalised
from cft.progress import console, progress
from cft.quiet import quiet_libraries
from cft.runs import (
    CONFIG,
    EXPORT,
    TRAINED_BY,
    RunContext,
    arm_of,
    as_metrics,
    flat,
    group_of,
    identity_of,
    keep_rows,
    run_context,
    save_config,
    settings_of,
    write_results,
)
from cft.step_seed import SeedEachStep
from cft.types import Problem
from cft.validation import GreedyAccuracy, ShowProgress
from cft.verify import verifier_fingerprint
from cft.verify_pool import VerifierPool

ARM_KEYS = ("model", "data.annotation", "mask", "weighting", "loss.normalizer", "optimizer.lr", "trainer.max_epochs")
# Keys that may differ between a run and its continuation.
_FREE_ON_RESUME = ("resume", "trainer.max_epochs", "trainer.enable_progress_bar", "allow_targets", "annotations_dir")


def train(cfg: DictConfig) -> float:
    """Greedy test accuracy (0-1) of the best epoch, NaN without evaluation problems; for sweepers."""
    quiet_libraries()
    context = run_context()
    folder = Path(cfg.resume) if cfg.resume else context.folder
    if cfg.resume:
        _require_same_config(folder, cfg)
    # The ranks of a distributed run share the folder; the first one holds it for all.
    first = getattr(rank_zero_only, "rank", 0) == 0  # Lightning sets it from the environment
    with exclusive(folder) if first else nullcontext():
        if first:
            save_config(folder, cfg)
        failed = True
        try:
            accuracy = _train(cfg, context, folder)
            failed = False
            return accuracy
        finally:
            close_loggers(failed=failed)


def _train(cfg: DictConfig, context: RunContext, folder: Path) -> float:
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    spec, prompt, verifier = build(cfg.model), build(cfg.prompt), build(cfg.verifier)
    tokenizer = load_tokenizer(spec)
    prompting = {
        "tokenizer": tokenizer_hash(tokenizer),
        "prompt": {"prompt": prompt.fingerprint(), "template": template_hash(tokenizer)},
    }
    objective, reference = build(cfg.loss)(build(cfg.weighting)), build(cfg.reference)
    columns = columns_for(
        objective.needs, given=reference.gives, stored_logprob=reference.stored, grouping=build(cfg.groups)
    )
    validation_problems, test_problems, exclude, benchmark = _problems(cfg)
    data: AnnotatedDataModule = build(cfg.data)(
        build(cfg.mask),
        Critical(num_alternatives=cfg.probe.critical_alternatives),
        columns,
        cfg.annotations_dir,
        prompting["tokenizer"],
        cfg.seed,
        exclude,
    )
    if not data.manifest.get("finished", True):
        console.print(
            f"Note: {data.store.folder} is unfinished (interrupted, or still being written); training on what is there. "
            "The annotate.py command that made it completes it."
        )
    _require_same_prompt(data, prompting)
    _require_metric(cfg.callbacks.best.monitor, data)
    model = load_causal_lm(spec)
    require_plain_attention(model)
    device = "cpu" if cfg.trainer.accelerator == "cpu" else "auto"
    place(model, device=device)
    module = CausalLMModule(
        model,
        objective,
        optimizer=build(cfg.optimizer),
        schedule=cfg.schedule.shape,
        warmup_fraction=cfg.schedule.warmup_fraction,
        probe_every_n_steps=cfg.probe.every_n_steps,
        reference=reference.attach(model) if needs_live(objective.needs, stored_logprob=reference.stored) else None,
    )
    facts = data.facts()
    keep_rows(folder, facts, annotation=data.store.folder, write=getattr(rank_zero_only, "rank", 0) == 0)
    console.print(
        f"Training {spec.name} ({sum(p.numel() for p in module.parameters()) / 1e6:.1f}M parameters) on "
        f"{facts['train_rows']:,} rows of {data.store.folder.name}; loss on {facts['eligible_fraction']:.0%} of "
        f"{facts['response_tokens']:,} response tokens -> {folder}"
    )
    with VerifierPool(verifier, workers=cfg.verify.workers, timeout_s=cfg.verify.timeout_s) as pool:

        def make_solver() -> Solver:
            return Solver(
                build(cfg.engine)(model, eos_ids(model, tokenizer)),
                tokenizer,
                prompt,
                Judge(tokenizer, pool.verify_all),
                model.config.max_position_embeddings,
            )

        started = time.monotonic()
        trainer, callbacks = _fit(cfg, context, folder, module, data, validation_problems, make_solver)
        seconds = time.monotonic() - started
        if not trainer.is_global_zero:
            return float("nan")
        best = callbacks["best"]
        best_epoch = _load_best(module, best)
        model.eval()
        export(model, tokenizer, folder=folder / EXPORT)
        place(model, device=device)  # Lightning leaves it on the CPU
        results: dict[str, Any] = {
            "schema": 1,
            "stage": "train",
            "run": folder.name,
            "arm": arm_of(cfg, context, ARM_KEYS),
            "identity": identity_of(settings := settings_of(cfg, TRAINED_BY)),
            "settings": settings,
            "seed": cfg.seed,
            "benchmark": benchmark,
            "split": "test",
            "problems": len(test_problems),
            "best_epoch": best_epoch,
            "best_validation": {"metric": best.monitor, "value": float(best.best_model_score)},
            "train_seconds": round(seconds, 2),
            "eligible_fraction": facts["eligible_fraction"],
            "data": {
                "annotation": data.store.folder.name,
                "fingerprint": data.manifest["fingerprint_sha256"],
                "prompting": prompting,
                **facts,
            },
            "budget": {
                "epochs": trainer.current_epoch,
                "steps": trainer.global_step,
                "rows_per_step": cfg.data.batch_size * trainer.accumulate_grad_batches * trainer.world_size,
            },
            "base": None,
        }
        results |= _evaluated(cfg, folder, make_solver(), test_problems, trainer)
        results["evaluation"]["verifier"] = verifier_fingerprint(verifier)
    write_results(folder, results)
    accuracy = results["metrics"].get("eval/accuracy", {}).get("value", float("nan"))
    measured = f"test accuracy {accuracy:.3f}" if test_problems else "not tested (evaluation.problems=0)"
    console.print(f"Done in {seconds:.0f} s: best epoch {best_epoch + 1}, {measured}; export: {folder / EXPORT}")
    return accuracy


def _evaluated(
    cfg: DictConfig, folder: Path, solver: Solver, problems: tuple[Problem, ...], trainer: pl.Trainer
) -> dict[str, Any]:
    """The entries of results.json that come of the test problems; every response goes to samples.parquet."""
    settings = cfg.evaluation
    request = SampleRequest(
        settings.num_samples, settings.temperature, settings.top_p, settings.seed, settings.max_new_tokens
    )
    entries: dict[str, Any] = {"evaluation": dataclasses.asdict(request)}
    if not problems:
        return {**entries, "metrics": {}, "per_problem": {"id": [], "correct": []}}
    samples = solver.solve(problems, request=request, title="Evaluating")
    intervals, per_problem = summarise(samples, seed=settings.seed)
    write_samples(folder / "samples.parquet", samples, solver.tokenizer)
    for logger in trainer.loggers:
        logger.log_metrics({name: i.value for name, i in intervals.items()}, step=trainer.global_step)
        logger.save()
    return {**entries, "metrics": as_metrics(intervals), "per_problem": per_problem}


def _require_same_prompt(data: AnnotatedDataModule, prompting: dict[str, Any]) -> None:
    annotated = data.manifest["fingerprint"]["prompt"]
    if annotated != prompting["prompt"]:
        raise ConfigError(
            f"prompt: {data.store.folder} was annotated with another prompt or chat template ({annotated}) than this run "
            f"uses ({prompting['prompt']}); set prompt=... as in the annotation, or annotate again"
        )


def _problems(cfg: DictConfig) -> tuple[tuple[Problem, ...], tuple[Problem, ...], frozenset[str], str]:
    """(validation problems, test problems, questions not to be trained on, benchmark's name)."""
    wanted = {"validation": cfg.validation.problems, "test": cfg.evaluation.problems}
    if not any(wanted.values()):
        return (), (), frozenset(), ""
    splits = build(cfg.benchmark)
    chosen = [splits.of(split)[: count if count >= 0 else None] if count else () for split, count in wanted.items()]
    exclude = frozenset(normalised(problem.question) for problem in (*splits.validation, *splits.test))
    return chosen[0], chosen[1], exclude, splits.name


def _fit(
    cfg: DictConfig,
    context: RunContext,
    folder: Path,
    module: CausalLMModule,
    data: AnnotatedDataModule,
    validation_problems: tuple[Problem, ...],
    make_solver: Any,
) -> tuple[pl.Trainer, dict[str, Any]]:
    arm = arm_of(cfg, context, ARM_KEYS)
    checkpoints = folder / "checkpoints"
    last = checkpoints / "last.ckpt" if cfg.resume else None
    run = RunFacts(
        folder,
        name=f"{arm['model']}-{arm['mask']}-{arm['weighting']}-seed{cfg.seed}",
        group=group_of(folder) if cfg.resume else context.group,
        job_type="train",
        tags=(f"mask:{arm['mask']}", f"weighting:{arm['weighting']}", f"model:{arm['model']}"),
        config=redacted(cfg),
        resumed_at=load_checkpoint(last)["global_step"] if last else 0,
    )
    callbacks = {name: build(node)(checkpoints) for name, node in cfg.callbacks.items()}
    with progress("Training", total=1) as bar:
        extra: list[Any] = [SeedEachStep(cfg.seed), ShowProgress(bar)]
        if validation_problems:
            extra.append(GreedyAccuracy(validation_problems, make_solver, max_new_tokens=cfg.evaluation.max_new_tokens))
        trainer: pl.Trainer = build(cfg.trainer)(
            logger=[build(node)(run) for node in cfg.logger.values()],
            callbacks=[*extra, *callbacks.values()],
            default_root_dir=folder,
        )
        try:
            trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
        except SystemExit as stop:  # what Lightning makes of Ctrl-C
            raise (KeyboardInterrupt if trainer.interrupted else stop) from None
    return trainer, callbacks


def _require_metric(monitor: str, data: AnnotatedDataModule) -> None:
    """The best epoch is chosen by a metric that will exist; found out before training, not after it."""
    if monitor == "val/loss" and not any((row.weight > 0).any() for row in data.validation_rows):
        raise ConfigError(
            f"callbacks.best.monitor=val/loss: {data.store.folder} gives {len(data.validation_rows)} validation rows, and "
            "the mask picks no token in them; raise data.validation_fraction, annotate more problems, or choose epochs "
            "by accuracy (callbacks=default)"
        )


def _load_best(module: CausalLMModule, best: Any) -> int:
    """Put the best epoch's weights into the module; returns the epoch, counted from 0."""
    if not best.best_model_path:
        raise ConfigError(
            f"callbacks.best.monitor={best.monitor}: no finite value of it was logged in any epoch, so there is no best "
            "one; choose another metric, or look for a loss that is not finite in metrics.csv"
        )
    checkpoint = load_checkpoint(Path(best.best_model_path))
    module.load_state_dict(checkpoint["state_dict"])
    return int(checkpoint["epoch"])


def _require_same_config(folder: Path, cfg: DictConfig) -> None:
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"resume={folder}: no {path}; expected the folder of a run that train.py started")
    stored, now = flat(OmegaConf.load(path)), flat(OmegaConf.create(redacted(cfg)))
    differing = [key for key in sorted({*stored, *now}) if stored.get(key) != now.get(key)]
    differing = [key for key in differing if key not in _FREE_ON_RESUME]
    if differing:
        lines = [f"  {key}: then {stored.get(key)!r}, now {now.get(key)!r}" for key in differing]
        raise ConfigError(
            f"resume={folder}: that run was configured otherwise; repeat its arguments:\n" + "\n".join(lines)
        )
