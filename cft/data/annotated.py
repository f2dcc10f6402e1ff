"""Converts annotated rows to rows for training: reads them, splits by problem, applies masks, and adds score columns."""

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
    """Prompt and response as one sequence; prompt tokens have weight 0."""
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
    """[R] 1 critical, 0 other, UNKNOWN_GROUP if not known, as for wrong responses and rollouts."""
    if row.verdict != "right" or not row.alt_outcome.shape[1]:
        return np.full(len(row.response_ids), UNKNOWN_GROUP, dtype=np.int8)
    picked = mask_weights(group_mask, row) > 0
    return np.where(group_mask.known(row), picked, UNKNOWN_GROUP).astype(np.int8)


def in_validation(problem_id: str, *, fraction: float) -> bool:
    """Whether a problem's rows are held out; depends only on the id, so it is the same for every arm and seed."""
    digest = hashlib.blake2b(f"validation\x1f{problem_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64 < fraction


def in_part(problem_id: str, *, part: int, parts: int) -> bool:
    """Whether a problem's rows belong to part `part` of `parts` parts of about equal size; depends only on the id."""
    digest = hashlib.blake2b(f"part\x1f{problem_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % parts == part


def rows_hash(rows: Sequence[AnnotatedResponse]) -> str:
    """Hash of the rows' training data in order, since an annotation may grow between two runs."""
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
    """Training rows from one annotation, with a mask.

    Args:
        request: Mask, columns and settings of the training run. A tokenizer other than the annotation's is refused, since its
            ids have other meanings.
        annotation: Name or folder.
        dir: Folder of the benchmark's files (read by the benchmark; accepted here because the key is shared).
        batch_size: Rows per micro-batch and process.
        micro_batch_assignment: How the rows of an optimizer step are assigned to micro-batches, see `cft/data/batches.py`.
        max_rows: Use only the first `max_rows` selected responses, in the order of the store; -1 = all.
        part: Index of the part of the problems to train on, from 0 to `parts` - 1.
        parts: Number of parts into which problems are divided; 1 = all problems.
        validation_fraction: Fraction of the problems whose rows are held out, 0 to below 1.
        max_tokens: Longer rows are dropped and counted.
        shuffle_responses: Train on each response after another problem's prompt, drawn by seed and ids
            (`cft/data/pairing.py`).
        responses: Rollouts to use: "right" ones with an end token, "wrong" ones as counted in a pass rate, or "all". "right"
            refuses annotations of wrong responses, since training would raise the likelihood of wrong answers. A loss that
            compares responses uses both right and wrong ones.
        min_pass_rate: For rollouts, the lowest pass rate of a problem to train on, inclusive; None = no bound.
        max_pass_rate: The highest one, inclusive; None = no bound.
        responses_per_problem: Maximal number of responses per problem, selected by a hash of their ids; -1 = all. Duplicate
            responses to a problem are always removed.
        prefix: Settings for training on only the beginnings of some responses; None = all responses are complete.
        tags: Four texts that mark thinking and answer in each response (`cft/data/tags.py`); null = unchanged responses. The
            tokenizer may have these texts as additional tokens.

    Raises:
        StoreError: There is no such annotation, it has another tokenizer, it lacks the requested responses, or the mask selects
            no token in it.
        MaskError: The annotation lacks the evidence that the mask needs.
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
    # Before prompts are exchanged: stored scores belong to a response after its own prompt.
    rows, scores = with_scores(store, apart, names=wanted, annotations_dir=annotations_dir)

    def is_held_out(row: AnnotatedResponse) -> bool:
        return in_validation(row.problem_id, fraction=validation_fraction)

    if prefix is not None:
        require_nothing_stored({"mask": mask, **columns})
        rows = prefix.of(rows, tokenizer=request.tokenizer, prompt=request.prompt)
    if shuffle_responses:
        _require_no_scores("data.shuffle_responses=true", "after its own prompt", columns)
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
        raise MaskError(_new_annotation_message(error, manifest)) from error
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
    """Data module with the rows of one annotation.

    Args:
        train_rows: as in `RowsDataModule`.
        validation_rows: as in `RowsDataModule`.
        store: The annotation.
        manifest: Its manifest.
        parts: Other arguments of `RowsDataModule`.
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
            f"model's tokenizer is {tokenizer_sha256[:12]}, in which token ids have other meanings. Train the annotated "
            "model, or annotate with this one: cft annotate model=<this model>"
        )


def _apart_from_benchmark(rows: Sequence[AnnotatedResponse], exclude: frozenset[str]) -> list[AnnotatedResponse]:
    held_out = HeldOut(exclude)  # a conversation may contain such a question among others
    apart = [row for row in rows if not held_out.is_in([row.problem])]
    if leaked := len(rows) - len(apart):
        console.print(f"Rows dropped: {leaked} of problems in the benchmark's validation or test split")
    return apart


def _fitting(rows: Sequence[AnnotatedResponse], *, max_tokens: int) -> list[AnnotatedResponse]:
    fitting = [row for row in rows if len(row.prompt_ids) + len(row.response_ids) <= max_tokens]
    if len(fitting) < len(rows):
        console.print(f"Rows dropped: {len(rows) - len(fitting)} longer than data.max_tokens={max_tokens}")
    return fitting


def _require_no_scores(key: str, of: str, names: Collection[str]) -> None:
    if names:
        raise StoreError(
            f"{key}: {', '.join(sorted(names))} would be those of the response {of}; train on such rows with a mask, a loss "
            "and a weighting that need neither groups nor stored scores"
        )


def _new_annotation_message(error: TooLittleEvidence, manifest: Mapping[str, Any]) -> str:
    """Error message with the remedy for an annotation that ships with the package and must not be changed."""
    name = f"{manifest['name']}_complete"
    make = ["cft annotate", annotating_model(manifest), f"annotation={name}", error.overrides]
    return (
        f"{error.found}. {manifest['name']} ships with the package and is not changed; this mask needs a more complete "
        f"annotation under another name. Create it with: {' '.join(filter(None, make))} "
        f"limit={manifest['counts']['problems']} (fewer problems take less time), and train with: cft train "
        f"data.annotation={name} ..."
    )
