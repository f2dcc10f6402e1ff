"""Annotated rows -> rows ready for training: reading, splitting by problem, masks, and the columns that methods need."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import lightning.pytorch as pl
import numpy as np
from pydantic import Field
from torch.utils.data import DataLoader

from cft.annotation.store import SHIPPED, AnnotationStore, StoreError, find_annotation
from cft.console import console
from cft.data.batches import GlobalOrderSampler, MicroBatch, MicroBatchAssignment, RowDataset, TokenRow, loader
from cft.data.pairing import other_prompts
from cft.data.problem_rows import normalized
from cft.errors import BadValue
from cft.files import sha256_json
from cft.masks.base import Mask, MaskError, TooLittleEvidence, mask_weights
from cft.ranges import AtLeastOne, Count, CountOrAll, FractionBelowOne, Name, in_range
from cft.scores.column import GROUP, Column
from cft.scores.store import annotating_model, with_scores
from cft.types import AnnotatedResponse, StepCounts, TokenBatch


def to_token_row(row: AnnotatedResponse, *, mask: Mask, group_mask: Mask, columns: Mapping[str, Column]) -> TokenRow:
    """Prompt and response in one sequence; the prompt carries no weight whatever the mask says."""
    prompt_len = len(row.prompt_ids)
    length = prompt_len + len(row.response_ids)
    weight = np.zeros(length, dtype=np.float32)
    weight[prompt_len:] = mask_weights(mask, row)
    probe = np.full(length, -1, dtype=np.int8)
    probe[prompt_len:] = mask_weights(group_mask, row) > 0
    scores = {name: np.zeros(length, dtype=np.float32) for name in columns}
    for name, column in columns.items():
        scores[name][prompt_len:] = column(row)
    ids = np.concatenate([row.prompt_ids, row.response_ids]).astype(np.int64)
    return TokenRow(row.response_id, ids, weight, probe, scores)


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
    digest = hashlib.sha256()
    for row in rows:
        for part in (row.prompt_ids, row.response_ids, row.alt_outcome):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


FEW_ROWS = 20
ALL_CRITICAL = 0.95  # of response tokens


@in_range
def annotated_rows(
    mask: Mask,
    group_mask: Mask,
    columns: Mapping[str, Column],
    annotations_dir: str,
    tokenizer_sha256: str,
    seed: int,
    exclude: frozenset[str],
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
) -> AnnotatedDataModule:
    """Rows of one annotation under a mask.

    Args:
        mask: Picks the tokens with loss.
        group_mask: Splits the metrics into critical and other tokens.
        columns: Further scores of every token, by the name under which the objective asks for them (`cft/data/columns.py`).
        annotations_dir: Where an annotation is looked for by its name.
        tokenizer_sha256: Of the model's tokenizer; another than the annotation's is refused, since ids would mean other text.
        seed: Of the order of rows, and of what is drawn.
        exclude: Normalized questions that must not be trained on: the benchmark's validation and test problems.
        annotation: Name or folder.
        dir: Folder of the benchmark's files (read by the benchmark, kept here for its key).
        batch_size: Rows of a micro-batch, per process.
        micro_batch_assignment: Of the rows of an optimizer step to its micro-batches, see `cft/data/batches.py`.
        max_rows: -1 = all, else the first by order in the store.
        part: Of `parts` parts of the problems, from 0: the one that is trained on.
        parts: 1 = all problems.
        validation_fraction: Fraction of the problems whose rows are held out, 0 to below 1.
        max_tokens: Longer rows are dropped and counted.
        shuffle_responses: Train on each response behind another problem's prompt, drawn by seed and ids
            (`cft/data/pairing.py`).

    Raises:
        StoreError: No such annotation, one of another tokenizer, or one in which the mask picks nothing.
        MaskError: An annotation without the evidence that the mask needs.
    """
    store = AnnotationStore(find_annotation(annotation, annotations_dir=annotations_dir))
    manifest = store.manifest()
    _require_tokenizer(store, manifest, tokenizer_sha256)
    every = store.rows()[: max_rows if max_rows >= 0 else None]
    every = [row for row in every if in_part(row.problem_id, part=part, parts=parts)]
    apart = _apart_from_benchmark(every, exclude)
    sources: dict[str, Column] = {"mask": mask, "group_mask": group_mask, **columns}
    wanted = {name for source in sources.values() for name in source.needs}
    # Before prompts are exchanged: a score is of a response behind its own prompt.
    rows, scores = with_scores(store, apart, names=wanted, annotations_dir=annotations_dir)

    def is_held_out(row: AnnotatedResponse) -> bool:
        return in_validation(row.problem_id, fraction=validation_fraction)

    if shuffle_responses:
        _require_no_columns(columns)
        rows = other_prompts(rows, seed=seed, part=is_held_out)
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
    _require_loss(store, mask, train_rows, total=len(rows))
    if GROUP in columns:
        _require_two_groups(train_rows)
    return AnnotatedDataModule(
        train_rows,
        [made for made, row in zip(token_rows, rows, strict=True) if is_held_out(row)],
        store=store,
        manifest=manifest,
        rows_sha256=rows_hash(rows),
        leaked=len(every) - len(apart),
        scores=scores,
        learnt={name: facts for name, source in sources.items() if (facts := source.facts())},
        batch_size=batch_size,
        micro_batch_assignment=micro_batch_assignment,
        seed=seed,
    )


class AnnotatedDataModule(pl.LightningDataModule):
    """Rows for training and validation, as `annotated_rows` made them.

    Args:
        train_rows: In the order of the store.
        validation_rows: Those of the problems that are held out.
        store: That they are from, with its `manifest`.
        rows_sha256: Of the rows before the mask.
        leaked: Rows that were dropped as problems of the benchmark.
        scores: Name -> fingerprint of the stored scores that were read.
        learnt: Name -> what a mask or column learnt from the training rows.
        batch_size: As above; so are `micro_batch_assignment` and `seed`.
    """

    def __init__(
        self,
        train_rows: list[TokenRow],
        validation_rows: list[TokenRow],
        *,
        store: AnnotationStore,
        manifest: dict[str, Any],
        rows_sha256: str,
        leaked: int,
        scores: dict[str, str],
        learnt: dict[str, dict[str, Any]],
        batch_size: int,
        micro_batch_assignment: MicroBatchAssignment,
        seed: int,
    ) -> None:
        super().__init__()
        self.train_rows, self.validation_rows = train_rows, validation_rows
        self.store, self.manifest = store, manifest
        self.rows_sha256, self.leaked = rows_sha256, leaked
        self.scores, self.learnt = scores, learnt
        self.batch_size, self.seed = batch_size, seed
        self.micro_batch_assignment: MicroBatchAssignment = micro_batch_assignment

    def facts(self) -> dict[str, Any]:
        """Counts that belong in a run's results; fractions 0-1 of response tokens."""
        response = sum(int((row.token_group >= 0).sum()) for row in self.train_rows)
        eligible = sum(int((row.weight > 0).sum()) for row in self.train_rows)
        return {
            "train_rows": len(self.train_rows),
            "validation_rows": len(self.validation_rows),
            "rows_sha256": self.rows_sha256,
            "rows_dropped_as_benchmark_problems": self.leaked,
            "rows_without_eligible_tokens": sum(not (row.weight > 0).any() for row in self.train_rows),
            "response_tokens": response,
            "eligible_tokens": eligible,
            "eligible_fraction": eligible / response,
            "scores": self.scores,
            "learnt": self.learnt,
        }

    def warnings(self) -> list[str]:
        """What makes a training on these rows tell little, though nothing is wrong with the configuration."""
        found = []
        if len(self.train_rows) < FEW_ROWS:
            found.append(
                f"{len(self.train_rows)} rows are few to train on (below {FEW_ROWS}): the result will say more of these rows "
                "than of the method; annotate more problems (limit=...)"
            )
        groups_N = np.concatenate([row.token_group[row.token_group >= 0] for row in self.train_rows])
        if (groups_N > 0).mean() > ALL_CRITICAL:
            found.append(
                f"{(groups_N > 0).mean():.0%} of the response tokens are critical: whatever is changed, the answer is wrong. "
                "Then the mask picks nothing out; look at the verifier, at max_new_tokens of the annotation (are continuations "
                "cut off?) and at the model"
            )
        return found

    def settings(self) -> dict[str, str]:
        """What tells runs apart that read other scores or other annotations under the same names."""
        read = {f"scores.{name}": digest[:12] for name, digest in self.scores.items()}
        return read | {f"learnt.{name}": sha256_json(facts)[:12] for name, facts in self.learnt.items()}

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        return self._loader(self.train_rows, shuffle=True)

    def val_dataloader(self) -> DataLoader[TokenBatch]:
        if self.validation_rows:
            return self._loader(self.validation_rows, shuffle=False)
        # One empty batch: Lightning skips validation without batches, and val/accuracy needs no rows.
        empty = RowDataset([], score_names=self.train_rows[0].scores.keys())
        return DataLoader(empty, sampler=[MicroBatch((), StepCounts())], batch_size=None)

    def _loader(self, rows: Sequence[TokenRow], *, shuffle: bool) -> DataLoader[TokenBatch]:
        trainer = self.trainer
        sampler = GlobalOrderSampler(
            [row.counts() for row in rows],
            batch_size=self.batch_size,
            accumulate=trainer.accumulate_grad_batches if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
            seed=self.seed,
            shuffle=shuffle,
            lengths=[row.needed() for row in rows],
            micro_batch_assignment=self.micro_batch_assignment,
        )
        return loader(rows, sampler)


def _require_tokenizer(store: AnnotationStore, manifest: Mapping[str, Any], tokenizer_sha256: str) -> None:
    stored = manifest["fingerprint"]["tokenizer"]
    if stored != tokenizer_sha256:
        raise StoreError(
            f"{store.folder}: annotated with tokenizer {stored[:12]} ({manifest['model_name']}), but the "
            f"model's tokenizer is {tokenizer_sha256[:12]}; token ids would mean other text. Train the annotated "
            "model, or annotate with this one: cft annotate model=<this model>"
        )


def _apart_from_benchmark(rows: Sequence[AnnotatedResponse], exclude: frozenset[str]) -> list[AnnotatedResponse]:
    apart = [row for row in rows if normalized(row.problem) not in exclude]
    if leaked := len(rows) - len(apart):
        console.print(f"Rows dropped: {leaked} of problems of the benchmark's validation or test split")
    return apart


def _fitting(rows: Sequence[AnnotatedResponse], *, max_tokens: int) -> list[AnnotatedResponse]:
    fitting = [row for row in rows if len(row.prompt_ids) + len(row.response_ids) <= max_tokens]
    if len(fitting) < len(rows):
        console.print(f"Rows dropped: {len(rows) - len(fitting)} longer than data.max_tokens={max_tokens}")
    return fitting


def _require_no_columns(columns: Mapping[str, Column]) -> None:
    if columns:
        raise StoreError(
            f"data.shuffle_responses=true: {', '.join(sorted(columns))} would be of the response behind its own "
            "prompt; train on shuffled pairs with a loss and a weighting that need neither groups nor a stored "
            "reference"
        )


def _require_loss(store: AnnotationStore, mask: Mask, rows: Sequence[TokenRow], *, total: int) -> None:
    """total: rows with those that are held out."""
    if not any((row.weight > 0).any() for row in rows):
        raise StoreError(
            f"{store.folder}: nothing to train on: {total} rows, {len(rows)} for training, and "
            f"mask {type(mask).__name__} picks no token in them. Annotate more problems or choose another mask."
        )


def _require_two_groups(rows: Sequence[TokenRow]) -> None:
    """A loss that compares groups of tokens would be another one if all that carry loss were of one group."""
    group_N = np.concatenate([row.scores[GROUP][row.weight > 0] for row in rows])
    picked = int((group_N > 0).sum())
    if picked in (0, len(group_N)):
        whole = (
            "group 1, the tokens that the grouping picks" if picked else "group 0, those that the grouping leaves out"
        )
        raise BadValue(
            f"groups: all {len(group_N):,} tokens with loss are of one group ({whole}), and a loss over groups would compare "
            "nothing; expected a mask and a grouping that differ: set mask=all, or another groups=..."
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
