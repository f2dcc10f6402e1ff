"""The rl stage: reinforcement learning with TRL, from a model or checkpoint, with this project's verifiers, logs and tests."""

from __future__ import annotations

import dataclasses
import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cft import run_log
from cft.annotation.store import AnnotationStore, find_annotation
from cft.benchmarks.sets import verifier_for
from cft.benchmarks.sweep import is_benchmark_override
from cft.config.build import build
from cft.config.schema import RlConfig
from cft.console import console, progress
from cft.data.chosen import PassRates
from cft.data.splits import Splits
from cft.engines.factory import EngineFactory
from cft.engines.refusals import require_decodes, require_local, require_samples
from cft.evaluation.evaluation import Solver, accuracy_sentence
from cft.evaluation.room import Room
from cft.files import exclusive
from cft.loggers.build import RunFacts, log_made, log_values, logging_to
from cft.loggers.evaluation_record import evaluated_model
from cft.models.device import chosen_device, place
from cft.models.export import export, require_exportable
from cft.models.lazy import LazyModel
from cft.models.load import load_tokenizer
from cft.prompts.chat import Prompt, prompting
from cft.quiet import quiet_libraries
from cft.rl.arm import PARTS, RATES_OF, arm_after, start_settings
from cft.rl.levels import require_spelt
from cft.rl.problems import Asked, KnownRates, asked
from cft.rl.resume import CHECKPOINTS, finished, newest
from cft.runs.arm import arm_of, part_of
from cft.runs.job import Job
from cft.runs.lineage import Link, annotation_link, checkpoint_link, lineage
from cft.runs.names import run_name
from cft.runs.results import RunResults
from cft.runs.run import EXPORT, group_of, identity_of, save_config, settings_of
from cft.runs.start import REPLACED, checkpoint_folder, require_same_prompt
from cft.runs.weights_card import write_model_card
from cft.stages.testing import base_of, evaluated, room_of
from cft.training.callbacks.interruption import Interruption
from cft.types import Verifier
from cft.verifiers import verifier_fingerprint
from cft.verifiers.grader import Grader
from cft.verifiers.pool import VerifierPool

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from transformers import PreTrainedModel


def rl(cfg: RlConfig, job: Job) -> float:
    """Run or resume training; return the greedy test accuracy in [0, 1] after the last step (NaN without test problems).

    Hyperparameter sweepers use the return value.
    """
    quiet_libraries()
    folder = Path(cfg.resume) if cfg.resume else job.folder
    if (done := finished(folder, job)) is not None:
        console.print(f"{folder} has finished; nothing to do")
        return done.accuracy
    checkpoint = newest(folder, job, resume=cfg.resume)
    interruption = Interruption(max_hours=cfg.interruption.max_hours)
    with interruption.handlers(), exclusive(folder):
        run = _prepared(cfg)
        return _run(cfg, job, run, folder, checkpoint, interruption)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Everything that is checked before the weights are read. trained: results of the start checkpoint, if known."""

    prompt: Prompt
    prompting: dict[str, Any]
    model: LazyModel
    asked: Asked
    data_name: str
    splits: Splits
    verifier: Verifier
    tested: Room
    make_engine: EngineFactory
    trained: RunResults | None
    inputs: tuple[Link, ...]

    def solver(self, model: PreTrainedModel, pool: VerifierPool) -> Solver:
        engine = self.make_engine(LazyModel.of(model, self.model.tokenizer, spec=self.model.spec))
        return Solver(engine, self.model.tokenizer, self.prompt, self.grader(pool), self.model.facts.context)

    def grader(self, pool: VerifierPool) -> Grader:
        return Grader.of(self.verifier, tokenizer=self.model.tokenizer, prompt=self.prompt, verify_all=pool.verify_all)


def _prepared(cfg: RlConfig) -> _Prepared:
    spec, prompt, make_engine = build(cfg.model), build(cfg.prompt), build(cfg.engine)
    require_local(make_engine)
    require_samples(make_engine, num_samples=cfg.evaluation.num_samples, key="evaluation.num_samples")
    trained: RunResults | None = None
    if cfg.checkpoint:
        start, trained = checkpoint_folder(cfg.checkpoint)
        spec = dataclasses.replace(spec, path=str(start), name=Path(cfg.checkpoint).name, lora=None)
    tokenizer = load_tokenizer(spec)
    now = prompting(prompt, tokenizer)
    require_same_prompt(trained, now, checkpoint=cfg.checkpoint, prompt_config=cfg.prompt, doing="run")
    data, splits = build(cfg.data), build(cfg.benchmark)
    verifier = verifier_for(data, chosen=build(cfg.verifier), thinking=cfg.verify.thinking.tags, strip=cfg.verify.strip)
    verifier_fingerprint(verifier)  # raises an error for an invalid verifier before anything is loaded
    model = LazyModel(spec, tokenizer, ends=[prompt.end_id(tokenizer)], device=cfg.device)
    if cfg.evaluation.problems or cfg.grpo.token_mask != "none":
        require_decodes(make_engine.name, model.config)
    rated = _rated(cfg)
    levels = {name: build(level) for name, level in cfg.reward.levels.items()}
    require_spelt(levels, tokenizer)
    found = asked(
        data,
        limit=cfg.limit,
        held_out=splits.held_out_questions(),
        prompt=prompt,
        tokenizer=tokenizer,
        context=model.facts.context,
        max_new_tokens=cfg.rollout.max_new_tokens,
        at_least=cfg.rollout.problems_per_step,
        rates=KnownRates.of(rated, PassRates(cfg.pass_rates.min, cfg.pass_rates.max)) if rated else None,
        levels=levels,
    )
    tested = room_of(
        splits,
        "test",
        wanted=cfg.evaluation.problems,
        evaluation=cfg.evaluation,
        model=model,
        prompt=prompt,
        engine=make_engine.name,
    )
    inputs = evaluated_model(cfg.checkpoint, model_path=cfg.model["path"])
    if rated:
        inputs = (*inputs, annotation_link(rated.folder))
    require_exportable(model.load(), tokenizer)
    return _Prepared(prompt, now, model, found, data.name, splits, verifier, tested, make_engine, trained, inputs)


def _run(
    cfg: RlConfig, job: Job, run: _Prepared, folder: Path, checkpoint: Path | None, interruption: Interruption
) -> float:
    begun = time.monotonic()
    facts = _facts(cfg, job, run, folder=folder)
    save_config(folder, job)
    run_log.write_to(folder)
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    _print_start(cfg, run, folder, done=done)
    run_facts = RunFacts(
        folder,
        name=run_name(facts["arm"], seed=cfg.seed),
        group=group_of(folder) if checkpoint else job.group,
        job_type="rl",
        tags=("rl", f"data:{run.data_name}"),
        config=job.config,
        command=job.command,
        inputs=run.inputs,
        resumed_at=done,
    )
    with (
        VerifierPool(run.verifier, workers=cfg.verify.workers, timeout_s=cfg.verify.timeout_s) as pool,
        logging_to(cfg.logger, lambda: run_facts) as loggers,
    ):
        base = None
        if run.tested.run and cfg.evaluation.base:
            base = base_of(
                run.model,
                run.tested.run,
                make_solver=lambda: run.solver(run.model.load(), pool),
                verifier=run.verifier,
                engine=cfg.engine,
                prompting=run.prompting,
                max_new_tokens=cfg.evaluation.max_new_tokens,
            )
        interruption.stop_if_asked()
        model, seconds = _trained(cfg, run, folder, checkpoint, interruption, pool, loggers)
        export(model, run.model.tokenizer, folder=folder / EXPORT, dtype=cfg.export.dtype)
        place(model, device=cfg.device)
        measured = evaluated(
            cfg.evaluation,
            run.tested.run,
            make_solver=lambda: run.solver(model, pool),
            verifier=run.verifier,
            loggers=loggers,
            step=cfg.steps,
            folder=folder,
        )
        interruption.stop_if_asked()
        results = RunResults(**facts, **measured, base=base, train_seconds=round(seconds, 2))
        results.write(folder)
        write_model_card(folder)
        log_made(loggers, checkpoint_link(folder))
    _print_end(results, folder=folder, seconds=time.monotonic() - begun)
    return results.accuracy


def _trained(
    cfg: RlConfig,
    run: _Prepared,
    folder: Path,
    checkpoint: Path | None,
    interruption: Interruption,
    pool: VerifierPool,
    loggers: list[Logger],
) -> tuple[PreTrainedModel, float]:
    """(the model after the last step, seconds of all steps). Raises Interrupted."""
    from cft.rl.callbacks import Record, StopWhenAsked  # importing transformers' Trainer takes a second
    from cft.rl.critical import critical_tokens
    from cft.rl.reward import verified_reward
    from cft.rl.trainer import grpo_trainer

    grader = run.grader(pool)
    critical = None
    if cfg.grpo.token_mask == "critical":
        critical = critical_tokens(cfg, run.model, run.asked, prompt=run.prompt, grader=grader)
    reward = verified_reward(
        grader,
        ends=run.model.facts.eos_ids,
        max_new_tokens=cfg.rollout.max_new_tokens,
        length_penalty=cfg.reward.length_penalty,
        on_outcomes=critical.set_outcomes if critical else lambda outcomes: None,
    )
    with progress("Reinforcement learning", total=cfg.steps) as bar:
        trainer = grpo_trainer(
            cfg,
            run.model,
            run.asked,
            folder=folder / CHECKPOINTS,
            device=chosen_device(cfg.device),
            reward=reward,
            callbacks=[
                Record(loggers, on_step=bar.advance, further=critical.facts if critical else {}),
                StopWhenAsked(interruption, every=cfg.grpo.num_iterations),
            ],
            critical=critical,
        )
        interruption.install()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    interruption.stop_if_asked()
    seconds = sum(entry.get("step_time", 0.0) for entry in trainer.state.log_history)
    log_values(loggers, {"perf/train_seconds": seconds}, step=cfg.steps - 1)
    weights = {
        name: tensor.detach().cpu()
        for name, tensor in trainer.accelerator.unwrap_model(trainer.model).state_dict().items()
    }
    del trainer
    gc.collect()
    # Load the model again, since TRL replaces the forward method of the model it trains.
    tokenizer = load_tokenizer(run.model.spec)
    model = LazyModel(run.model.spec, tokenizer, ends=[run.prompt.end_id(tokenizer)], device="cpu").load()
    model.load_state_dict(weights)
    return model.eval(), seconds


def _rated(cfg: RlConfig) -> AnnotationStore | None:
    """The annotation whose pass rates select problems, or None."""
    name = cfg.pass_rates.annotation
    if not name:
        return None
    return AnnotationStore(find_annotation(name, annotations_dir=cfg.annotations_dir, key=RATES_OF))


def _facts(cfg: RlConfig, job: Job, run: _Prepared, *, folder: Path) -> dict[str, Any]:
    """The fields of `RunResults` that are known before the first step."""
    weights = run.model.weights() if cfg.checkpoint and run.trained is None else ""
    settings = settings_of(job, PARTS)
    if cfg.checkpoint:
        settings = {name: value for name, value in settings.items() if name not in REPLACED}
    settings |= start_settings(run.trained, weights=weights)
    if rated := _rated(cfg):  # identified by content, not by path
        settings[RATES_OF] = annotation_link(rated.folder).fingerprint[:12]
    else:
        settings = {name: value for name, value in settings.items() if part_of(name) != part_of(RATES_OF)}
    own = {name: value for name, value in arm_of(job, ("model",)).items() if not is_benchmark_override(name)}
    rollout = cfg.rollout
    return {
        "stage": "rl",
        "run": folder.name,
        "arm": arm_after(run.trained, own, loss_type=cfg.grpo.loss_type, checkpoint=cfg.checkpoint, weights=weights),
        "identity": identity_of(settings),
        "settings": settings,
        "seed": cfg.seed,
        "benchmark": run.splits.name if run.tested.run else "",
        "split": "test",
        **run.tested.facts(),
        "data": {
            "problems": run.data_name,
            "fingerprint": run.asked.fingerprint(),
            "train_problems": len(run.asked.problems),
            "left_out": run.asked.left_out,
            "verifier": verifier_fingerprint(run.verifier),
            "prompting": run.prompting,
        },
        "budget": {"steps": cfg.steps, "rows_per_step": rollout.problems_per_step * rollout.num_generations},
        "lineage": lineage(job.command, run.inputs),
    }


# ---- console output


def _print_start(cfg: RlConfig, run: _Prepared, folder: Path, *, done: int) -> None:
    for reason, count in run.asked.left_out.items():
        console.print(f"Left out: {count} problems of {run.data_name}, {reason}", markup=False)
    from_where = cfg.checkpoint or run.model.spec.name
    console.print(
        f"{f'Resuming after step {done}' if done else 'Starting'} from {from_where}: {cfg.steps} steps of "
        f"{cfg.rollout.problems_per_step} x {cfg.rollout.num_generations} responses to {len(run.asked.problems):,} problems of "
        f"{run.data_name} -> {folder}",
        markup=False,
    )


def _print_end(results: RunResults, *, folder: Path, seconds: float) -> None:
    measured = "not tested (evaluation.problems=0)"
    if results.metrics:
        console.print(accuracy_sentence(results.verdicts, not_run=len(results.not_run)), markup=False)
        base = results.base
        before = f" (before {base['metrics']['eval/accuracy']['value']:.3f})" if base else ""
        measured = f"test accuracy {results.accuracy:.3f}{before}"
    console.print(
        f"Done: {results.train_seconds:.0f} s of steps, {seconds:.0f} s in all; {measured}; reward, pass rate, entropy and "
        f"length per step: {folder / 'metrics.csv'}; export: {folder / EXPORT}",
        markup=False,
    )
