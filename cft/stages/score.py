"""The score stage: rows x frozen model x kind of score -> a stored score (`cft/scores/store.py`)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from cft import run_log
from cft.annotation.store import AnnotationStore, StoreError, find_annotation
from cft.config.build import build
from cft.config.part import Part
from cft.config.schema import ScoreConfig
from cft.console import console, progress
from cft.data.given import scored_row
from cft.data.module import RowsDataModule, RowsRequest
from cft.fleets.base import Crew, Facts, Fleet, FleetError, Report, left_out_message, package_facts
from cft.masks.spans import All
from cft.models.device import device_facts
from cft.models.lazy import LazyModel
from cft.models.load import (
    ModelSpec,
    load_tokenizer,
    locate,
    read_config,
    require_room,
    tokenizer_hash,
)
from cft.quiet import quiet_libraries
from cft.runs.job import Job
from cft.runs.start import checkpoint_folder
from cft.scores.methods import OwnModel, ScoreKind
from cft.scores.store import (
    StoredScore,
    Values,
    annotating_model,
    check_score_name,
    given_scores_folder,
    read_score,
    scores_folder,
    write_score,
)
from cft.types import AnnotatedResponse


def score(cfg: ScoreConfig, job: Job) -> Path:
    """Compute a score, or its missing values if the annotation has grown; returns the score's folder."""
    quiet_libraries()
    fleet: Fleet = build(cfg.fleet)
    kind: ScoreKind = build(cfg.score)
    name = check_score_name(cfg.name, kind=kind.fingerprint()["kind"])
    spec = _model_spec(cfg, kind)
    tokenizer = load_tokenizer(spec)
    given = build(cfg.data)  # reader of user-provided rows, or None
    source = _annotated(cfg, tokenizer, spec) if given is None else _given(cfg, given, tokenizer)
    folder, rows = source.folder, source.rows
    model = {"weights": "", "dtype": ""}
    if not isinstance(kind, OwnModel):
        require_room(
            read_config(spec, locate(spec.path)),
            lengths={row.response_id: len(row.prompt_ids) + len(row.response_ids) for row in rows},
            remedy="choose a model with a longer context",
        )
        model = {"weights": LazyModel(spec, tokenizer, device="cpu").weights(), "dtype": spec.dtype}
    method = {
        "score": kind.fingerprint(),
        "model": model,
        "tokenizer": tokenizer_hash(tokenizer),
    }
    known: dict[str, Values] = {}
    if not cfg.replace and (folder / name / "manifest.json").is_file():
        stored = read_score(folder, name=name, annotation=cfg.annotation, model=source.model, given=source.given)
        _require_same_method(stored, method)
        known = {row.response_id: values for row in rows if (values := stored.of(row)) is not None}
        if len(known) == len(rows) == len(stored.values):
            console.print(f"{folder / name}: all {len(rows):,} rows already have values; nothing to do")
            return folder / name
    run_log.write_to(job.folder)
    started = time.monotonic()
    missing = [row for row in rows if row.response_id not in known]
    make = MakeScoring(cfg.score, spec)
    facts = {**method["model"], "tokenizer": method["tokenizer"], "packages": package_facts()}
    with fleet.crew(make, device=cfg.device, expected=lambda: facts) as crew:
        values = {**known, **_computed(crew, batches(missing, size=cfg.batch_size), job=job)}
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


@dataclass(frozen=True, slots=True)
class ToScore:
    """Rows to score.

    Args:
        folder: folder of the scores.
        rows: the rows.
        model: overrides that select the annotating model, for messages.
        given: path of user-provided rows, "" for an annotation.
    """

    folder: Path
    rows: list[AnnotatedResponse]
    model: str = ""
    given: str = ""


def _annotated(cfg: ScoreConfig, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> ToScore:
    store = AnnotationStore(find_annotation(cfg.annotation, annotations_dir=cfg.annotations_dir, key="annotation"))
    rows = store.rows()
    if not rows:
        raise StoreError(f"{store.folder}: no rows to score; annotate more problems")
    _require_same_tokenizer(store, tokenizer_hash(tokenizer), spec)
    folder = scores_folder(store.folder, annotations_dir=cfg.annotations_dir)
    return ToScore(folder, rows, model=annotating_model(store.manifest()))


def _given(
    cfg: ScoreConfig, read: Callable[[RowsRequest], RowsDataModule], tokenizer: PreTrainedTokenizerBase
) -> ToScore:
    """Rows as read by `cft train data=rows` with the same settings, including held-out rows."""
    request = RowsRequest(
        All(),
        All(),
        {},
        cfg.annotations_dir,
        tokenizer_hash(tokenizer),
        cfg.seed,
        frozenset(),
        tokenizer=tokenizer,
        prompt=build(cfg.prompt),
    )
    data = read(request)
    path = str(cfg.data["path"])
    rows = [scored_row(row) for row in (*data.train_rows, *data.validation_rows)]
    return ToScore(given_scores_folder(path, annotations_dir=cfg.annotations_dir), rows, given=path)


def batches(rows: Sequence[AnnotatedResponse], *, size: int) -> list[list[AnnotatedResponse]]:
    """Batches of rows with similar lengths, to reduce padding."""
    ordered = sorted(rows, key=lambda row: (len(row.prompt_ids) + len(row.response_ids), row.response_id))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def compute(
    kind: ScoreKind,
    model: Any,
    parts: Sequence[Sequence[AnnotatedResponse]],
    *,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> dict[str, Values]:
    """Values by response id, computed batch by batch. model: None for a score with a separate model."""
    values: dict[str, Values] = {}
    asked: Any = model if model is None else model.eval()
    for batch in parts:
        values |= {row.response_id: found for row, found in zip(batch, kind(asked, batch), strict=True)}
        on_batch(len(batch))
    return values


@dataclass(frozen=True, slots=True)
class MakeScoring:
    """Makes a worker that scores batches of rows; it is sent to the worker's process."""

    score: Part
    spec: ModelSpec

    def __call__(self, device: str) -> Scoring:
        return Scoring(build(self.score), self.spec, device=device)


class Scoring:
    """Worker with a frozen model and a kind of score."""

    def __init__(self, kind: ScoreKind, spec: ModelSpec, *, device: str) -> None:
        quiet_libraries()
        tokenizer = load_tokenizer(spec)
        model = {"weights": "", "dtype": ""}
        self.model: Any = None  # stays None if the score has a separate model
        if isinstance(kind, OwnModel):
            at = kind.on(device)
        else:
            lazy = LazyModel(spec, tokenizer, device=device)
            model = {"weights": lazy.weights(), "dtype": spec.dtype}
            self.model = lazy.load()
            at = self.model.device
        self.kind = kind
        self.facts: Facts = {
            **model,
            "tokenizer": tokenizer_hash(tokenizer),
            "device": device_facts(at),
            "packages": package_facts(),
        }

    def work(self, item: Sequence[Sequence[AnnotatedResponse]], report: Report) -> dict[str, Values]:
        done = 0

        def on_batch(rows: int) -> None:
            nonlocal done
            done += rows
            report(done)

        return compute(self.kind, self.model, item, on_batch=on_batch)

    def close(self) -> None:
        pass


def _computed(
    crew: Crew[Sequence[Sequence[AnnotatedResponse]], dict[str, Values]],
    parts: Sequence[Sequence[AnnotatedResponse]],
    *,
    job: Job,
) -> dict[str, Values]:
    """Values of all rows. Raises FleetError if some could not be computed."""
    size = max(1, math.ceil(len(parts) / crew.pieces))
    done, values = dict[int, int](), dict[str, Values]()
    with progress("Scoring", total=sum(map(len, parts))) as bar:

        def update(piece: int, rows: int) -> None:
            done[piece] = rows
            bar.advance(sum(done.values()) - bar.done)

        pieces = [parts[i : i + size] for i in range(0, len(parts), size)]
        for piece, found in crew.map(enumerate(pieces), watch=update):
            values |= found
            update(piece, len(found))
    if crew.left_out:
        kept = "A score needs values for all rows, so nothing was written."
        raise FleetError(left_out_message(crew.left_out, kept=kept, command=job.command))
    return values


def _model_spec(cfg: ScoreConfig, kind: ScoreKind) -> ModelSpec:
    """The model, or that of the checkpoint; without new adapters, since it is frozen."""
    spec: ModelSpec = build(cfg.model)
    if cfg.checkpoint:
        folder, _ = checkpoint_folder(cfg.checkpoint)
        spec = dataclasses.replace(spec, path=str(folder), name=Path(cfg.checkpoint).name)
    attention = "eager" if kind.eager else spec.attn_implementation
    return dataclasses.replace(spec, lora=None, gradient_checkpointing=False, attn_implementation=attention)


def _require_same_tokenizer(store: AnnotationStore, tokenizer: str, spec: ModelSpec) -> None:
    stored = store.manifest()["fingerprint"]["tokenizer"]
    if stored != tokenizer:
        raise StoreError(
            f"{store.folder}: annotated with tokenizer {stored[:12]}, but {spec.name} has {tokenizer[:12]}, in which token ids "
            "have other meanings. Use a model with the annotation's tokenizer; to transfer a mask between tokenizers, use "
            "mask=projected"
        )


def _require_same_method(stored: StoredScore, method: dict[str, Any]) -> None:
    then = {key: value for key, value in stored.manifest["fingerprint"].items() if key != "rows"}
    differing = [key for key in sorted({*then, *method}) if then.get(key) != method.get(key)]
    if differing:
        lines = [f"  {key}: stored {then.get(key)!r}, now {method.get(key)!r}" for key in differing]
        raise StoreError(
            f"{stored.folder}: holds another score (made by: {stored.manifest['command']}):\n"
            + "\n".join(lines)
            + "\nUse another name (name=...), or overwrite the stored score with replace=true"
        )
