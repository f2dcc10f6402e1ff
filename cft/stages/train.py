"""The train stage: annotation x mask x weighting -> checkpoints, Hugging Face export, results.json."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from transformers import PreTrainedModel

from cft.config.build import ConfigError, build
from cft.config.schema import TrainConfig
from cft.console import console
from cft.data.columns import needs_live
from cft.evaluation.evaluation import Solver, accuracy_sentence
from cft.files import exclusive
from cft.loggers.build import close_loggers, log_made
from cft.models.adapters import coverage
from cft.models.device import place
from cft.models.experts import KEY as ROUTER_KEY
from cft.models.experts import router_coefficient, router_note
from cft.models.export import export_adapter
from cft.models.kernels import prepare_for_training
from cft.models.lazy import LazyModel
from cft.models.load import export, load_causal_lm
from cft.quiet import quiet_libraries
from cft.runs.arm import ARM_KEYS, arm_of
from cft.runs.job import Job
from cft.runs.lineage import checkpoint_link, data_link, lineage, model_inputs
from cft.runs.results import RunResults
from cft.runs.run import ADAPTER, EXPORT, TRAINED_BY, identity_of, settings_of
from cft.runs.weights_card import write_model_card
from cft.stages.preparation import Prepared, measures_base, prepared
from cft.stages.testing import base_of, evaluated
from cft.training.calibration import calibrate
from cft.training.callbacks.interruption import Interruption
from cft.training.checkpointing.checkpoints import load_checkpoint
from cft.training.checkpointing.resume import Start, finished_accuracy, start_of
from cft.training.distributed.launcher import own_environment
from cft.training.distributed.sharding import is_sharded, release, trained_weights
from cft.training.distributed.weights import is_empty, is_first
from cft.training.fit import Fit, Fitted
from cft.training.module import CausalLMModule, frozen_names
from cft.training.parameter_groups import described, factory_of, groups_of
from cft.verifiers.grader import Grader
from cft.verifiers.pool import VerifierPool


def train(cfg: TrainConfig, job: Job, start: Start | None = None) -> float:
    """Train a model.

    Args:
        cfg: the configuration.
        job: the job.
        start: where the run starts, if rank 0 has already determined it.

    Returns:
        Greedy test accuracy (0-1) of the best epoch, NaN without evaluation problems; for sweepers.
    """
    quiet_libraries()
    interruption = Interruption(max_hours=cfg.interruption.max_hours)
    start = start or start_of(job, resume=cfg.resume)
    if start.finished:
        return finished_accuracy(start.folder)
    # The ranks of a distributed run share the folder; rank 0 locks it for all.
    console.quiet = not is_first()
    with interruption.handlers(), own_environment(), exclusive(start.folder) if is_first() else nullcontext():
        failed = True
        try:
            accuracy = _train(cfg, job, start, interruption)
            failed = False
            return accuracy
        finally:
            close_loggers(failed=failed)


def _train(cfg: TrainConfig, job: Job, start: Start, interruption: Interruption) -> float:
    begun = time.monotonic()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    run = prepared(cfg, start.folder)
    module = _module(cfg, run)
    calibration = {}
    if not is_empty(module):
        calibration = calibrate(module.lm, [*run.data.validation_rows, *run.data.train_rows])
    _print_start(run, module, start.folder, router=cfg.router.aux_coef)
    with VerifierPool(run.verifier, workers=cfg.verify.workers, timeout_s=cfg.verify.timeout_s) as pool:

        def solver_of(model: PreTrainedModel) -> Solver:
            engine = run.make_engine(LazyModel.of(model, run.tokenizer, spec=run.model.spec))
            grader = Grader.of(run.verifier, tokenizer=run.tokenizer, prompt=run.prompt, verify_all=pool.verify_all)
            return Solver(engine, run.tokenizer, run.prompt, grader, run.model.facts.context)

        # Only on rank 0, since some engines keep a second copy of the weights.
        if (run.validation.run or run.tested.run) and is_first():
            solver_of(module.lm.model)  # an engine that cannot decode this model raises its error before training
        base = interruption.unless_asked(lambda: _base(cfg, run, solver_of), otherwise=None)
        fitted = Fit(cfg, job, start, interruption, module, run.data).run(run.validation.run, solver_of)
        if not fitted.trainer.is_global_zero:
            return float("nan")
        interruption.stop_if_asked()
        model, best_epoch = _best_model(run, module, fitted)
        _export(cfg, run, model, start.folder)
        place(model, device=_device(cfg))  # Lightning moves it to the CPU after training
        facts = _facts(cfg, job, run, fitted, folder=start.folder)
        measured = interruption.unless_asked(
            lambda: evaluated(
                cfg.evaluation,
                run.tested.run,
                make_solver=lambda: solver_of(model),
                verifier=run.verifier,
                loggers=fitted.trainer.loggers,
                step=fitted.trainer.global_step,
                folder=start.folder,
            ),
            otherwise={},
        )
        interruption.stop_if_asked()
    fixed = calibration | ({ROUTER_KEY: module.lm.router} if module.lm.router else {})
    results = RunResults(**facts, **measured, best_epoch=best_epoch, calibration=fixed, base=base)
    results.write(start.folder)
    write_model_card(start.folder)
    log_made(fitted.trainer.loggers, checkpoint_link(start.folder))
    _print_end(results, fitted, folder=start.folder, seconds=time.monotonic() - begun)
    return results.accuracy


def _module(cfg: TrainConfig, run: Prepared) -> CausalLMModule:
    """The Lightning module, on its device."""
    model, reference = run.model.load(), run.reference
    # With several processes, Lightning assigns devices, and sharding moves the model block by block, since all of a large
    # model may not fit on one device.
    place(model, device=_device(cfg) if cfg.trainer["devices"] == 1 else "cpu")
    used = prepare_for_training(model, kernels=cfg.compute.kernels)
    mixed = cfg.trainer.get("precision") in ("bf16-mixed", "bf16")
    live = needs_live(run.objective.needs, stored_logprob=reference.stored)
    return CausalLMModule(
        model,
        run.objective,
        optimizer=factory_of(cfg.optimizer),
        groups=groups_of(cfg.optimizer),
        schedule=cfg.schedule.shape,
        warmup_fraction=cfg.schedule.warmup_fraction,
        probe_every_n_steps=cfg.probe.every_n_steps,
        inputs=build(cfg.inputs),
        layout=cfg.compute.layout,
        fused_loss=used.fused_loss,
        router=router_coefficient(model.config, asked=cfg.router.aux_coef),
        reference=reference.attach(model, mixed=mixed) if live else None,
        examples=len(run.data.groups),
    )


def _device(cfg: TrainConfig) -> str:
    return "cpu" if cfg.trainer["accelerator"] == "cpu" else "auto"


def _print_start(run: Prepared, module: CausalLMModule, folder: Path, *, router: float | None) -> None:
    for warning in run.data.warnings():
        console.print(f"Warning: {warning}", markup=False)
    if said := coverage(module.lm.model):
        console.print(said, markup=False)
    if note := router_note(module.lm.model.config, asked=router):
        console.print(note, markup=False)
    if module.of_inputs:
        console.print(module.of_inputs, markup=False)
    if module.assigned:
        for line in described(module.assigned, module.groups):
            console.print(line, markup=False)
    facts = run.data.facts()
    console.print(
        f"Training {run.model.spec.name} ({sum(p.numel() for p in module.parameters()) / 1e6:.1f}M parameters) on "
        f"{facts['train_rows']:,} rows of {run.data.source.name} ({facts['validation_rows']:,} more are held out for "
        f"validation); loss on {facts['eligible_fraction']:.0%} of "
        f"{facts['response_tokens']:,} response tokens -> {folder}"
    )


def _base(cfg: TrainConfig, run: Prepared, solver_of: Callable[[PreTrainedModel], Solver]) -> dict[str, Any] | None:
    """Results of the model before training on the test problems, if requested."""
    if not (run.tested.run and measures_base(cfg)):
        return None
    return base_of(
        run.model,
        run.tested.run,
        make_solver=lambda: solver_of(run.model.load()),
        verifier=run.verifier,
        engine=cfg.engine,
        prompting=run.prompting,
        max_new_tokens=cfg.evaluation.max_new_tokens,
    )


def _best_model(run: Prepared, module: CausalLMModule, fitted: Fitted) -> tuple[PreTrainedModel, int]:
    """The model with the weights of the best epoch, and that epoch, from 0. A sharded model is loaded unsharded."""
    model, spec = run.model.load(), run.model.spec
    whole = load_causal_lm(spec, ends=[run.prompt.end_id(run.tokenizer)]) if is_sharded(model) else model
    best_epoch = _load_best(module, model, fitted.callbacks["best"], fitted.trainer, into=whole)
    if whole is not model:
        release(fitted.trainer, module)
    return whole.eval(), best_epoch


def _export(cfg: TrainConfig, run: Prepared, model: PreTrainedModel, folder: Path) -> None:
    spec = run.model.spec
    export(model, run.tokenizer, folder=folder / EXPORT, dtype=cfg.export.dtype)
    if spec.lora is not None:
        export_adapter(model, folder=folder / ADAPTER, base=spec.path, revision=spec.revision)


def _facts(cfg: TrainConfig, job: Job, run: Prepared, fitted: Fitted, *, folder: Path) -> dict[str, Any]:
    """The fields of `RunResults` that are known before testing."""
    data, trainer, best = run.data, fitted.trainer, fitted.callbacks["best"]
    facts = data.facts()
    settings = settings_of(job, TRAINED_BY) | data.settings() | fitted.history.replanned()
    return {
        "stage": "train",
        "run": folder.name,
        "arm": arm_of(job, ARM_KEYS),
        "identity": identity_of(settings),
        "settings": settings,
        "seed": cfg.seed,
        "benchmark": run.splits.name,
        "split": "test",
        **run.tested.facts(),
        "validation": run.validation.facts(),
        "best_validation": {"metric": best.monitor, "value": float(best.best_model_score)},
        "train_seconds": round(fitted.history.seconds(), 2),
        "spent": fitted.history.spent(),
        "eligible_fraction": facts["eligible_fraction"],
        "data": {
            data.source.kind: data.source.name,
            "fingerprint": data.source.fingerprint,
            "prompting": run.prompting,
            **facts,
        },
        "budget": {
            "epochs": fitted.epochs(),
            "steps": trainer.global_step,
            "rows_per_step": data.batch_size * trainer.accumulate_grad_batches * trainer.world_size,
        },
        "starts_as_reference": run.starts_as_reference,
        "lineage": lineage(job.command, (data_link(data.source), *model_inputs(run.model.spec.path))),
    }


def _print_end(results: RunResults, fitted: Fitted, *, folder: Path, seconds: float) -> None:
    base, best_epoch = results.base, results.best_epoch or 0
    measured = "not tested (evaluation.problems=0)"
    if results.metrics:
        console.print(accuracy_sentence(results.verdicts, not_run=len(results.not_run)), markup=False)
        before = f" (before training {base['metrics']['eval/accuracy']['value']:.3f})" if base else ""
        measured = f"test accuracy {results.accuracy:.3f}{before}"
    console.print(
        f"Done: {results.train_seconds:.0f} s of training, {seconds:.0f} s in all; {measured}; export of epoch "
        f"{best_epoch + 1} of {fitted.epochs():g}, the best: {folder / EXPORT}"
    )


def _load_best(
    module: CausalLMModule, model: PreTrainedModel, best: Any, trainer: pl.Trainer, *, into: PreTrainedModel
) -> int:
    """Load the best epoch's weights of `model`, a submodule of `module`, into `into`; returns that epoch, from 0."""
    if not best.best_model_path:
        logged = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
        if best.monitor in logged:
            reason = "no epoch logged a finite value of it; look for a loss that is not finite in metrics.csv"
        elif logged:
            reason = f"no such metric was logged; choose one of {', '.join(logged)}"
        else:
            reason = "training ended without validation; do not change the Trainer's validation settings"
        raise ConfigError(
            f"callbacks.best.monitor={best.monitor}: {reason}. There is no best epoch, so nothing is exported"
        )
    checkpoint = load_checkpoint(Path(best.best_model_path))
    found = into.load_state_dict(trained_weights(checkpoint, module, model), strict=False)
    if lacking := [*found.unexpected_keys, *({*found.missing_keys} - frozen_names(into))]:
        raise RuntimeError(
            f"{best.best_model_path}: its weights are not those of the model; they differ in {sorted(lacking)[:6]}"
        )
    return int(checkpoint["epoch"])
