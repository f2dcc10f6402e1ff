"""Prepares a training run: loads problems, rows and model, and raises errors before training begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cft.benchmarks.sets import verifier_for
from cft.config.build import ConfigError, build
from cft.config.part import Part
from cft.config.schema import Split, TrainConfig
from cft.console import console
from cft.data.annotated import AnnotatedDataModule
from cft.data.columns import columns_for
from cft.data.module import RowsDataModule, RowsRequest
from cft.data.splits import Splits
from cft.engines.factory import EngineFactory
from cft.engines.refusals import require_decodes, require_local, require_samples
from cft.evaluation.room import Room
from cft.losses.objective import Objective
from cft.masks.critical import Critical
from cft.models.architecture import require_packable
from cft.models.experts import router_coefficient
from cft.models.export import require_exportable
from cft.models.lazy import LazyModel
from cft.models.load import load_tokenizer
from cft.models.load import require_room as require_length
from cft.prompts.chat import Prompt, prompt_conflict, prompting
from cft.references.models import Reference, starts_as_reference
from cft.stages.testing import room_of
from cft.training.distributed.weights import is_first
from cft.training.fit import require_constructible
from cft.types import Verdict, Verifier
from cft.verifiers import other_verifier_note, verifier_fingerprint
from cft.verifiers.pool import VerifierPool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_PROBLEMS = Splits("", (), (), (), {}, "")  # for a run that is neither validated on problems nor tested


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that a training run needs, checked before it begins.

    prompting: from `cft.prompts.chat`. validation, tested: problems that can be run after each epoch, and at the end.
    """

    prompt: Prompt
    prompting: dict[str, Any]
    objective: Objective
    reference: Reference
    splits: Splits
    verifier: Verifier
    data: RowsDataModule
    model: LazyModel
    make_engine: EngineFactory
    starts_as_reference: bool | None
    validation: Room
    tested: Room

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.model.tokenizer


def prepared(cfg: TrainConfig, folder: Path) -> Prepared:
    """Load problems, rows and model, fastest first, and check that they fit together."""
    spec, prompt, make_engine = build(cfg.model), build(cfg.prompt), build(cfg.engine)
    require_local(make_engine)
    require_samples(make_engine, num_samples=cfg.evaluation.num_samples, key="evaluation.num_samples")
    tokenizer = load_tokenizer(spec)
    current = prompting(prompt, tokenizer)
    objective, reference = build(cfg.loss)(build(cfg.weighting)), build(cfg.reference)
    columns = columns_for(
        objective.needs, given=reference.gives, stored_logprob=reference.stored, grouping=build(cfg.groups)
    )
    graded = cfg.validation.problems or cfg.evaluation.problems or cfg.data.get("tags")
    splits = build(cfg.benchmark) if graded else NO_PROBLEMS
    verifier = verifier_for(
        splits, chosen=build(cfg.verifier), thinking=cfg.verify.thinking.tags, strip=cfg.verify.strip
    )
    graded_by = verifier_fingerprint(verifier)  # raises an error for an invalid verifier before anything is loaded
    data: RowsDataModule = build(cfg.data)(
        RowsRequest(
            build(cfg.mask),
            Critical(num_alternatives=cfg.probe.critical_alternatives, untried="leave_out"),
            columns,
            cfg.annotations_dir,
            current["tokenizer"],
            cfg.seed,
            splits.held_out_questions(),
            rejected=objective.rejected,
            tokenizer=tokenizer,
            prompt=prompt,
            verify_all=lambda items: _verified(items, verifier, cfg),
        )
    )
    if isinstance(data, AnnotatedDataModule):
        _note_on_annotation(data, splits, graded_by=graded_by)
        _require_same_prompt(data, current, cfg.prompt)
    _require_positive(data, objective)
    _require_metric(cfg.callbacks["best"]["monitor"], data)
    require_constructible(cfg, folder)
    # On the CPU, and moved later. Other ranks get their weights from rank 0.
    model = LazyModel(spec, tokenizer, ends=[prompt.end_id(tokenizer)], device="cpu", empty=not is_first())
    require_length(
        model.config,
        lengths={row.row_id: len(row.ids) for row in (*data.train_rows, *data.validation_rows)},
        remedy="lower data.max_tokens, or choose a model with a longer context",
    )
    _require_possible(cfg, model, make_engine)
    require_exportable(model.load(), tokenizer)
    if measures_base(cfg):
        model.weights()  # hash them before training changes them
    at_reference = (
        starts_as_reference(model.load(), columns=columns, manifest=data.manifest)
        if isinstance(data, AnnotatedDataModule)
        else None
    )
    rooms: tuple[tuple[Split, int], ...] = (
        ("validation", cfg.validation.problems),
        ("test", cfg.evaluation.problems),
    )
    validation, tested = (
        room_of(
            splits,
            split,
            wanted=wanted,
            evaluation=cfg.evaluation,
            model=model,
            prompt=prompt,
            engine=make_engine.name,
        )
        for split, wanted in rooms
    )
    return Prepared(
        prompt,
        current,
        objective,
        reference,
        splits,
        verifier,
        data,
        model,
        make_engine,
        at_reference,
        validation,
        tested,
    )


def _require_possible(cfg: TrainConfig, model: LazyModel, make_engine: EngineFactory) -> None:
    """Check layout, engine and router loss against the model's config, before its weights are read."""
    if cfg.compute.layout == "packed":
        require_packable(model.config)
    router_coefficient(model.config, asked=cfg.router.aux_coef)
    if cfg.validation.problems or cfg.evaluation.problems:
        require_decodes(make_engine.name, model.config)


def _verified(items: Sequence[tuple[str, str]], verifier: Verifier, cfg: TrainConfig) -> list[Verdict]:
    """Verdicts from a temporary pool; the training run starts its own pool later."""
    with VerifierPool(verifier, workers=cfg.verify.workers, timeout_s=cfg.verify.timeout_s) as pool:
        return pool.verify_all(items)


def measures_base(cfg: TrainConfig) -> bool:
    """Whether the model is tested before training; not with several processes, which would have to wait."""
    return bool(cfg.evaluation.problems and cfg.evaluation.base and cfg.trainer["devices"] == 1)


def _note_on_annotation(data: AnnotatedDataModule, splits: Splits, *, graded_by: str) -> None:
    if not data.manifest.get("finished", True):
        console.print(
            f"Note: {data.store.folder} is unfinished (interrupted, or still being written); training on its current rows. "
            "To complete it, repeat its cft annotate command."
        )
    if splits is not NO_PROBLEMS and (note := other_verifier_note(data.manifest["fingerprint"]["verifier"], graded_by)):
        console.print(note, markup=False)


def _require_same_prompt(data: AnnotatedDataModule, current: dict[str, Any], prompt: Part) -> None:
    then = data.manifest["config"].get("prompt", {})
    annotated = {"prompt": data.manifest["fingerprint"]["prompt"]}
    if differing := prompt_conflict(annotated, current, then_config=then, now_config=prompt):
        raise ConfigError(
            f"prompt: {differing} differs between {data.store.folder} and this run; set prompt=... as in the annotation, or "
            "annotate again"
        )


def _require_positive(data: RowsDataModule, objective: Objective) -> None:
    """Raises ConfigError for negative weights, which lower a token's probability without bound, unless they are allowed."""
    rows = (*data.train_rows, *data.validation_rows)
    negative = next((row for row in rows if (row.weight < 0).any()), None)
    if negative is not None and not objective.negative_weights:
        at = int(np.flatnonzero(negative.weight < 0)[0])
        raise ConfigError(
            f"loss.negative_weights=false: row {negative.row_id} of {data.source.place} has the weight "
            f"{negative.weight[at]:g} at token {at}. A negative weight lowers the probability of its token without bound; "
            "repair the weights, or allow this with loss.negative_weights=true"
        )


def _require_metric(monitor: str, data: RowsDataModule) -> None:
    """Raises ConfigError before training if the metric that chooses the best epoch will not exist."""
    if monitor == "val/loss" and not any(row.weight.any() for row in data.validation_rows):
        raise ConfigError(
            f"callbacks.best.monitor=val/loss: {data.source.place} gives {len(data.validation_rows)} validation rows, and "
            f"the mask selects no token in them; raise data.validation_fraction, {data.more}, or choose epochs "
            "by accuracy (callbacks=default)"
        )
