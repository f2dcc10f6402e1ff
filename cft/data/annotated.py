"""Annotated rows -> rows ready for training: reading, splitting by problem, masks, and the columns that methods need."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cft.annotation.rollouts import holds_rollouts
from cft.annotation.store import SHIPPED, AnnotationStore, StoreError, find_annotation
from cft.console import console
from cft.data.batches import UNKNOWN_GROUP, MicroBatchAssignment, TokenRow, arrays_hash
from cft.data.chosen import Choice, PassRates, Verdicts, chosen, require_no_counterfactuals
from cft.data.held_out import HeldOut
from cft.data.module import RowsDataModule, RowsRequest, require_loss, require_two_groups
from cft.data.pairing import other_prompts
from cft.data.prefix import PrefixRows, require_nothing_stored
from cft.data.tags import tagged_rows
from cft.masks.base import Mask, MaskError, TooLittleEvidence, mask_weights
from cft.models.load import tokenizer_hash
from cft.ranges import AtLeastOne, Count, CountOrAll, Fraction, FractionBelowOne, Name, in_range
from cft.scores.column import GROUP, Column
from cft.scores.store import annotating_model, with_scores
from cft.types import AnnotatedResponse, DataSource


def to_token_row(row: AnnotatedResponse, *, mask: Mask, group_mask: Mask, columns: Mapping[str, Column]) -> TokenRow:
    """Prompt and response in one sequence; the prompt carries no weight whatever the mask says."""
    prompt_len = len(row.prompt_ids)
    length = prompt_len + len(row.response_ids)
    weight = np.zeros(length, dtype=np.float32)
    weight[prompt_len:] = mask_weights(mask, row)
    probe = np.full(length, -1, dtype=np.int8)
    probe[prompt_len:] = _token_groups(group_mask, row)
    scores = {name: np.zeros(length, dtype=np.float32) for name in columns}
    for name, column in columns.items():
        scores[name][prompt_len:] = column(row)
    ids = np.concatenate([row.prompt_ids, row.response_ids]).astype(np.int64)
    return TokenRow(row.response_id, ids, weight, probe, scores, group=row.problem_id, chosen=row.verdict == "right")


def _token_groups(group_mask: Mask, row: AnnotatedResponse) -> NDArray[np.int8]:
    """[R] 1 critical, 0 other, UNKNOWN_GROUP where that is not known: of a wrong response and a rollout."""
    if row.verdict != "right" or not row.alt_outcome.shape[1]:
        return np.full(len(row.response_ids), UNKNOWN_GROUP, dtype=np.int8)
    picked = mask_weights(group_mask, row) > 0
    return np.where(group_mask.known(row), picked, UNKNOWN_GROUP).astype(np.int8)


def in_validation(problem_id: str, *, fraction: float) -> bool:
    """Whether a problem's rows are held out; a function of the id alone, the same for every arm and seed."""
    digest = hashlib.blake2b(f"validation\x1f{problem_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64 < fraction


def in_part(problem_id: str, *, part: int, parts: int) -> bool:
    """Whether a problem's rows are in one of so many parts of about the same size; a function of the id alone."""
    digest = hashlib.blake2b(f"part\x1f{problem_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % parts == part


def rows_hash(rows: Sequence[AnnotatedResponse]) -> str:
    """Hash of what training sees of the rows, in their order: an annotation may grow between two runs."""
    return arrays_hash(part for row in rows for part in (row.prompt_ids, row.response_ids, row.alt_outcome))


@in_range
def annotated_rows(
    request: RowsRequest,
    *,
    annotation: Name,
    dir: str,
    batch_size: AtLeastOne,
    micro_batch_assignment: MicroBatchAssignment,
    max_rows: CountOrAll,
    part: Count,
    parts: AtLeastOne,
    validation_fraction: FractionBelowOne,
    max_tokens: Annotated[int, Field(ge=2)],
    shuffle_responses: bool,
    responses: Verdicts = "right",
    min_pass_rate: Fraction | None = None,
    max_pass_rate: Fraction | None = None,
    responses_per_problem: CountOrAll = -1,
    prefix: PrefixRows | None = None,
    tags: list[str] | None = None,
) -> AnnotatedDataModule:
    """Rows of one annotation under a mask.

    Args:
        request: What the training asks for. Another tokenizer than the annotation's is refused, since ids would mean other
            text.
        annotation: Name or folder.
        dir: Folder of the benchmark's files (read by the benchmark, kept here for its key).
        batch_size: Rows of a micro-batch, per process.
        micro_batch_assignment: Of the rows of an optimizer step to its micro-batches, see `cft/data/batches.py`.
        max_rows: -1 = all, else the first by order in the store, of the responses that are chosen.
        part: Of `parts` parts of the problems, from 0: the one that is trained on.
        parts: 1 = all problems.
        validation_fraction: Fraction of the problems whose rows are held out, 0 to below 1.
        max_tokens: Longer rows are dropped and counted.
        shuffle_responses: Train on each response behind another problem's prompt, drawn by seed and ids
            (`cft/data/pairing.py`).
        responses: Of rollouts the right ones that have ended, those that count as wrong in a pass rate, or all. "right" refuses
            an annotation of responses that end wrong, since the likelihood of a wrong answer would be raised. A loss that
            compares responses takes both kinds.
        min_pass_rate: Of rollouts: the lowest pass rate of a problem whose responses are trained on, included; None = any.
        max_pass_rate: The highest one, included; None = any.
        responses_per_problem: -1 = all, else at most so many of a problem, by a hash of their ids. Of equal responses to a
            problem there is one in any case.
        prefix: Of a share of the responses their beginning alone; None = all whole.
        tags: Four texts, between which each response is written as its thinking and its answer (`cft/data/tags.py`); null: as
            it is. The tokenizer may have more tokens than the annotation's, if they are these.

    Raises:
        StoreError: No such annotation, one of another tokenizer, one without the responses that are asked for, or one in which
            the mask picks nothing.
        MaskError: An annotation without the evidence that the mask needs.
    """
    mask, group_mask, columns = request.mask, request.group_mask, request.columns
    annotations_dir, seed = request.annotations_dir, request.seed
    store = AnnotationStore(find_annotation(annotation, annotations_dir=annotations_dir))
    manifest = store.manifest()
    _require_tokenizer(store, manifest, request, tags=tags or ())
    rollouts = holds_rollouts(manifest)
    if rollouts:
        require_no_counterfactuals(str(store.folder), {"mask": mask, **columns})
    choice = Choice(
        "compared" if request.rejected else responses, PassRates(min_pass_rate, max_pass_rate), responses_per_problem
    )
    every = [row for row in store.rows() if in_part(row.problem_id, part=part, parts=parts)]
    every, left_out = chosen(every, choice, rollouts=rollouts, place=str(store.folder))
    for reason, count in left_out.items():
        console.print(f"Left out: {count} {reason.replace('_', ' ')}")
    every = every[: max_rows if max_rows >= 0 else None]
    apart = _apart_from_benchmark(every, request.exclude)
    sources: dict[str, Column] = {"mask": mask, "group_mask": group_mask, **columns}
    wanted = {name for source in sources.values() for name in source.needs}
    # Before prompts are exchanged: a score is of a response behind its own prompt.
    rows, scores = with_scores(store, apart, names=wanted, annotations_dir=annotations_dir)

    def is_held_out(row: AnnotatedResponse) -> bool:
        return in_validation(row.problem_id, fraction=validation_fraction)

    if prefix is not None:
        require_nothing_stored({"mask": mask, **columns})
        rows = prefix.of(rows, tokenizer=request.tokenizer, prompt=request.prompt)
    if shuffle_responses:
        _require_no_scores("data.shuffle_responses=true", "behind its own prompt", columns)
        rows = other_prompts(rows, seed=seed, part=is_held_out)
    if tags is not None:
        _require_no_scores("data.tags", "without tags", {*columns, *wanted})
        assert request.tokenizer is not None
        assert request.verify_all is not None
        rows = tagged_rows(rows, texts=tags, tokenizer=request.tokenizer, verify_all=request.verify_all)
    rows = _fitting(rows, max_tokens=max_tokens)
    try:
        for source in sources.values():
            source.fit([row for row in rows if not is_held_out(row)])
        token_rows = [to_token_row(row, mask=mask, group_mask=group_mask, columns=columns) for row in rows]
    except TooLittleEvidence as error:
        if store.folder.resolve().parent != SHIPPED.resolve():
            raise
        raise MaskError(_made_afresh(error, manifest)) from error
    train_rows = [made for made, row in zip(token_rows, rows, strict=True) if not is_held_out(row)]
    require_loss(str(store.folder), mask, train_rows, total=len(rows), more="Annotate more problems")
    if GROUP in columns:
        require_two_groups(train_rows)
    return AnnotatedDataModule(
        train_rows,
        [made for made, row in zip(token_rows, rows, strict=True) if is_held_out(row)],
        store=store,
        manifest=manifest,
        rows_sha256=rows_hash(rows),
        leaked=len(every) - len(apart),
        scores=scores,
        learnt={name: facts for name, source in sources.items() if (facts := source.facts())},
        read=left_out,
        batch_size=batch_size,
        micro_batch_assignment=micro_batch_assignment,
        seed=seed,
        rejected=request.rejected,
    )


class AnnotatedDataModule(RowsDataModule):
    """Rows of one annotation.

    Args:
        store: That they are from, with its `manifest`.
        parts: As `RowsDataModule` takes them.
    """

    more = "annotate more problems (limit=...)"

    def __init__(
        self,
        train_rows: list[TokenRow],
        validation_rows: list[TokenRow],
        *,
        store: AnnotationStore,
        manifest: dict[str, Any],
        **parts: Any,
    ) -> None:
        source = DataSource("annotation", store.folder.name, store.folder, manifest["fingerprint_sha256"])
        super().__init__(train_rows, validation_rows, source=source, **parts)
        self.store, self.manifest = store, manifest


def _require_tokenizer(
    store: AnnotationStore, manifest: Mapping[str, Any], request: RowsRequest, *, tags: Sequence[str]
) -> None:
    stored, tokenizer_sha256 = manifest["fingerprint"]["tokenizer"], request.tokenizer_sha256
    if stored != tokenizer_sha256 and tags and request.tokenizer is not None:
        tokenizer_sha256 = tokenizer_hash(request.tokenizer, without=tags)
    if stored != tokenizer_sha256:
        raise StoreError(
            f"{store.folder}: annotated with tokenizer {stored[:12]} ({manifest['model_name']}), but the "
            f"model's tokenizer is {tokenizer_sha256[:12]}; token ids would mean other text. Train the annotated "
            "model, or annotate with this one: cft annotate model=<this model>"
        )


def _apart_from_benchmark(rows: Sequence[AnnotatedResponse], exclude: frozenset[str]) -> list[AnnotatedResponse]:
    held_out = HeldOut(exclude)  # a conversation may hold such a question beside others
    apart = [row for row in rows if not held_out.is_in([row.problem])]
    if leaked := len(rows) - len(apart):
        console.print(f"Rows dropped: {leaked} of problems of the benchmark's validation or test split")
    return apart


def _fitting(rows: Sequence[AnnotatedResponse], *, max_tokens: int) -> list[AnnotatedResponse]:
    fitting = [row for row in rows if len(row.prompt_ids) + len(row.response_ids) <= max_tokens]
    if len(fitting) < len(rows):
        console.print(f"Rows dropped: {len(rows) - len(fitting)} longer than data.max_tokens={max_tokens}")
    return fitting


def _require_no_scores(key: str, of: str, names: Collection[str]) -> None:
    if names:
        raise StoreError(
            f"{key}: {', '.join(sorted(names))} would be of the response {of}; train on such rows with a mask, a loss and a "
            "weighting that need neither groups nor stored scores"
        )


def _made_afresh(error: TooLittleEvidence, manifest: Mapping[str, Any]) -> str:
    """The remedy for an annotation that ships with the package and stays as it is."""
    name = f"{manifest['name']}_complete"
    make = ["cft annotate", annotating_model(manifest), f"annotation={name}", error.afresh]
    return (
        f"{error.found}. {manifest['name']} ships with the package and stays as it is; this mask needs an annotation of more "
        f"under another name. Make it with: {' '.join(filter(None, make))} limit={manifest['counts']['problems']} (fewer "
        f"problems take less time), and train with: cft train data.annotation={name} ..."
    )
