"""Scoring from a configuration: annotation x frozen model x kind of score -> a stored score (`cft/scores/store.py`)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cft.annotation.store import AnnotationStore, StoreError, find_annotation
from cft.config.build import ConfigError, build
from cft.config.schema import ScoreConfig
from cft.console import console, progress
from cft.models.lazy import LazyModel
from cft.models.load import (
    ModelSpec,
    load_tokenizer,
    require_room,
    tokenizer_hash,
)
from cft.quiet import quiet_libraries
from cft.runs.job import Job
from cft.runs.run import EXPORT
from cft.scores.methods import ScoreKind
from cft.scores.store import (
    StoredScore,
    Values,
    annotating_model,
    check_score_name,
    read_score,
    scores_folder,
    write_score,
)
from cft.types import AnnotatedResponse


def score(cfg: ScoreConfig, job: Job) -> Path:
    """Compute the score that `cfg` describes, or what a grown annotation lacks of it; returns its folder."""
    quiet_libraries()
    store = AnnotationStore(find_annotation(cfg.annotation, annotations_dir=cfg.annotations_dir, key="annotation"))
    folder = scores_folder(store.folder, annotations_dir=cfg.annotations_dir)
    kind: ScoreKind = build(cfg.score)
    name = check_score_name(cfg.name, kind=kind.fingerprint()["kind"])
    rows = store.rows()
    if not rows:
        raise StoreError(f"{store.folder}: no rows to score; annotate more problems")
    spec = _model_spec(cfg, kind)
    tokenizer = load_tokenizer(spec)
    _require_same_tokenizer(store, tokenizer_hash(tokenizer), spec)
    model = LazyModel(spec, tokenizer, device=cfg.device)  # loaded below, if there is something to score
    require_room(
        model.config,
        lengths={row.response_id: len(row.prompt_ids) + len(row.response_ids) for row in rows},
        remedy="choose a model of a longer context",
    )
    method = {
        "score": kind.fingerprint(),
        "model": {"weights": model.weights(), "dtype": spec.dtype},
        "tokenizer": tokenizer_hash(tokenizer),
    }
    known: dict[str, Values] = {}
    if not cfg.replace and (folder / name / "manifest.json").is_file():
        model_name = annotating_model(store.manifest())
        stored = read_score(folder, name=name, annotation=cfg.annotation, model=model_name)
        _require_same_method(stored, method)
        known = {row.response_id: values for row in rows if (values := stored.of(row)) is not None}
        if len(known) == len(rows) == len(stored.values):
            console.print(f"{folder / name}: all {len(rows):,} rows have their values already; nothing to do")
            return folder / name
    started = time.monotonic()
    missing = [row for row in rows if row.response_id not in known]
    values = {**known, **compute(kind, model.load(), missing, batch_size=cfg.batch_size)}
    seconds = time.monotonic() - started
    write_score(
        folder,
        name=name,
        method=method,
        rows=rows,
        values=values,
        info={
            "command": job.command_without("replace"),
            "model_name": spec.name,
            "versions": {package: version(package) for package in ("torch", "transformers")},
        },
    )
    tokens = sum(len(row.response_ids) for row in missing)
    console.print(
        f"Scored {len(missing):,} of {len(rows):,} rows ({tokens:,} response tokens) in {seconds:.1f} s -> {folder / name}"
    )
    return folder / name


def compute(
    kind: ScoreKind, model: PreTrainedModel, rows: Sequence[AnnotatedResponse], *, batch_size: int
) -> dict[str, Values]:
    """Values by response id. Rows of a batch are alike in length, so that little is padded."""
    ordered = sorted(rows, key=lambda row: (len(row.prompt_ids) + len(row.response_ids), row.response_id))
    values: dict[str, Values] = {}
    model.eval()
    with progress("Scoring", total=len(rows)) as bar:
        for start in range(0, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            values |= {row.response_id: found for row, found in zip(batch, kind(model, batch), strict=True)}
            bar.advance(len(batch))
    return values


def _model_spec(cfg: ScoreConfig, kind: ScoreKind) -> ModelSpec:
    """The model, or the one that a run folder or model folder holds. What is frozen needs no adapters of its own."""
    spec: ModelSpec = build(cfg.model)
    if cfg.checkpoint:
        path = Path(cfg.checkpoint)
        folder = next((f for f in (path / EXPORT, path) if (f / "config.json").is_file()), None)
        if folder is None:
            raise ConfigError(
                f"checkpoint={cfg.checkpoint}: neither a run folder of cft train (with {EXPORT}/config.json) nor a Hugging "
                "Face model folder (with config.json)"
            )
        spec = dataclasses.replace(spec, path=str(folder), name=path.name)
    attention = "eager" if kind.eager else spec.attn_implementation
    return dataclasses.replace(spec, lora=None, gradient_checkpointing=False, attn_implementation=attention)


def _require_same_tokenizer(store: AnnotationStore, tokenizer: str, spec: ModelSpec) -> None:
    stored = store.manifest()["fingerprint"]["tokenizer"]
    if stored != tokenizer:
        raise StoreError(
            f"{store.folder}: annotated with tokenizer {stored[:12]}, but {spec.name} has {tokenizer[:12]}; its token ids "
            "would mean other text. Take a model with the annotation's tokenizer; a mask made with another one is carried "
            "over by mask=projected"
        )


def _require_same_method(stored: StoredScore, method: dict[str, Any]) -> None:
    then = {key: value for key, value in stored.manifest["fingerprint"].items() if key != "rows"}
    differing = [key for key in sorted({*then, *method}) if then.get(key) != method.get(key)]
    if differing:
        lines = [f"  {key}: stored {then.get(key)!r}, now {method.get(key)!r}" for key in differing]
        raise StoreError(
            f"{stored.folder}: holds another score (made by: {stored.manifest['command']}):\n"
            + "\n".join(lines)
            + "\nGive this one another name (name=...), or overwrite that one with replace=true"
        )
