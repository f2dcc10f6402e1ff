"""Evaluation from a configuration: a model or a checkpoint on a benchmark -> results.json, samples.parquet, a table."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from cft.config import ConfigError, build
from cft.device import place
from cft.evaluation import SampleRequest, Solver, summarise, write_samples
from cft.evaluation_record import evaluated_before, evaluated_model, log_evaluation
from cft.judge import Judge
from cft.lineage import lineage
from cft.metrics import Interval
from cft.models import (
    eos_ids,
    load_causal_lm,
    load_tokenizer,
    require_plain_attention,
    template_hash,
    tokenizer_hash,
    weights_hash,
)
from cft.progress import console
from cft.quiet import quiet_libraries
from cft.runs import (
    EXPORT,
    MEASURED_AS,
    RESULTS,
    RunContext,
    arm_of,
    as_metrics,
    identity_of,
    run_context,
    save_config,
    settings_of,
    write_results,
)
from cft.verify import verifier_fingerprint
from cft.verify_pool import VerifierPool

ARM_KEYS = ("model",)


def evaluate(cfg: DictConfig) -> float:
    """Greedy accuracy, 0-1. Writes the run folder's results.json and samples.parquet."""
    quiet_libraries()
    context = run_context()
    inputs = evaluated_model(cfg)
    if (before := evaluated_before(cfg, context, inputs=inputs)) is not None:
        return before
    spec = build(cfg.model)
    trained: dict[str, Any] = {}
    if cfg.checkpoint:
        folder, trained = _checkpoint(cfg.checkpoint)
        spec = dataclasses.replace(spec, path=str(folder), name=Path(cfg.checkpoint).name, lora=None)
    splits = build(cfg.benchmark)
    problems = splits.of(cfg.split)[: cfg.limit if cfg.limit >= 0 else None]
    verifier, prompt = build(cfg.verifier), build(cfg.prompt)
    tokenizer = load_tokenizer(spec)
    _require_same_prompt(
        trained, tokenizer_hash(tokenizer), prompt.fingerprint(), template_hash(tokenizer), cfg.checkpoint
    )
    model = load_causal_lm(spec)
    require_plain_attention(model)
    place(model, device=cfg.device)
    request = SampleRequest(cfg.num_samples, cfg.temperature, cfg.top_p, cfg.seed, cfg.max_new_tokens)
    started = time.monotonic()
    with VerifierPool(verifier, workers=cfg.verify.workers, timeout_s=cfg.verify.timeout_s) as pool:
        solver = Solver(
            build(cfg.engine)(model, eos_ids(model, tokenizer)),
            tokenizer,
            prompt,
            Judge(tokenizer, pool.verify_all),
            model.config.max_position_embeddings,
        )
        samples = solver.solve(problems, request=request, title=f"Evaluating {spec.name}")
    intervals, per_problem = summarise(samples, seed=cfg.seed)
    save_config(context.folder, cfg)
    write_samples(context.folder / "samples.parquet", samples, tokenizer)
    results = {
        "schema": 1,
        "stage": "evaluate",
        "run": context.folder.name,
        **_identity(cfg, context, trained, weights=weights_hash(model) if cfg.checkpoint and not trained else ""),
        "seed": trained.get("seed", cfg.seed),
        "benchmark": splits.name,
        "split": cfg.split,
        "problems": len(problems),
        "metrics": as_metrics(intervals),
        "per_problem": per_problem,
        "evaluation": {**dataclasses.asdict(request), "verifier": verifier_fingerprint(verifier)},
        "lineage": lineage(inputs),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_results(context.folder, results)
    log_evaluation(cfg, context, results, samples=samples, tokenizer=tokenizer, inputs=inputs)
    console.print(metrics_table(f"{spec.name} on {splits.name}/{cfg.split}, {len(problems)} problems", intervals))
    console.print(f"Results: {context.folder / RESULTS}, every response: {context.folder / 'samples.parquet'}")
    return intervals["eval/accuracy"].value


def metrics_table(title: str, intervals: dict[str, Interval]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval over problems", justify="right")
    for name, interval in intervals.items():
        table.add_row(name, f"{interval.value:.3f}", f"[{interval.low:.3f}, {interval.high:.3f}]".replace("[", r"\["))
    return table


def _identity(cfg: DictConfig, context: RunContext, trained: dict[str, Any], *, weights: str) -> dict[str, Any]:
    """arm, settings and identity: what training recorded wins over what this evaluation would say.

    weights: hash of a checkpoint that says nothing of its training, else "". Its weights tell such a model from others.
    """
    arm = {**arm_of(cfg, context, ARM_KEYS), **(trained.get("arm") or {})}
    arm.pop("checkpoint", None)
    if trained:
        return {"arm": arm, **{key: trained[key] for key in ("settings", "identity") if key in trained}}
    settings = settings_of(cfg, MEASURED_AS)
    if weights:
        path = Path(cfg.checkpoint)
        name = f"{path.parent.name}/{path.name}" if path.name == EXPORT else path.name
        arm |= {"model": name, "weights": weights[:12]}
    return {"arm": arm, "settings": settings, "identity": identity_of(settings)}


def _checkpoint(checkpoint: str) -> tuple[Path, dict[str, Any]]:
    """(Hugging Face folder, results of the training run or {}) of a run folder or a model folder."""
    path = Path(checkpoint)
    for folder in (path / EXPORT, path):
        if (folder / "config.json").is_file():
            results = path / RESULTS
            return folder, json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    raise ConfigError(
        f"checkpoint={checkpoint}: neither a run folder of train.py (with {EXPORT}/config.json) nor a Hugging Face model "
        "folder (with config.json). A run that was cut off has no export yet: python train.py ... resume=<run folder>"
    )


def _require_same_prompt(trained: dict[str, Any], tokenizer: str, prompt: str, template: str, checkpoint: str) -> None:
    """A model trained under one prompt and tokenizer is not measured under another in silence."""
    now = {"tokenizer": tokenizer, "prompt": {"prompt": prompt, "template": template}}
    then = (trained.get("data") or {}).get("prompting")
    if then is not None and then != now:
        parts = [key for key in now if now[key] != then.get(key)]
        raise ConfigError(
            f"checkpoint={checkpoint}: trained with another {' and '.join(parts)} than this evaluation uses "
            f"(trained {then}, now {now}); set prompt=... as in training, or evaluate the export folder itself: "
            f"checkpoint={checkpoint}/{EXPORT}"
        )
