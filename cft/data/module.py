"""The data module: token rows for training and validation, from any source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader

from cft.console import console
from cft.data.batches import (
    UNKNOWN_GROUP,
    GlobalOrderSampler,
    MicroBatch,
    MicroBatchAssignment,
    RowDataset,
    TokenRow,
    loader,
)
from cft.data.groups import groups_of, whole_groups
from cft.errors import BadValue, UserError
from cft.files import sha256_json
from cft.masks.base import Mask
from cft.scores.column import GROUP, Column
from cft.types import DataSource, StepCounts, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cft.prompts.chat import Prompt
    from cft.types import Verdict

FEW_ROWS = 20
ALL_CRITICAL = 0.95  # of response tokens


class NothingToTrain(UserError, ValueError):
    """No token of the rows carries loss; the message names the rows and the remedy."""


@dataclass(frozen=True, slots=True)
class RowsRequest:
    """Settings of a training run that determine its rows.

    Args:
        mask: selects the tokens with loss.
        group_mask: divides tokens into critical and other ones for the metrics.
        columns: additional values per token, by the names that the objective needs (`cft/data/columns.py`).
        annotations_dir: folder in which annotations are found by name.
        tokenizer_sha256: hash of the model's tokenizer.
        seed: seed of the order of rows, and of random draws.
        exclude: normalized questions that must not be trained on: the benchmark's validation and test problems.
        rejected: number of rejected rows that the loss compares with a chosen one; 0 = no comparison.
        tokenizer: for rows that must be encoded.
        prompt: for rows that must be encoded.
        verify_all: verdicts of (response, gold answer) pairs, for rows that must be split at their answers.
    """

    mask: Mask
    group_mask: Mask
    columns: Mapping[str, Column]
    annotations_dir: str
    tokenizer_sha256: str
    seed: int
    exclude: frozenset[str]
    rejected: int = 0
    tokenizer: PreTrainedTokenizerBase | None = None
    prompt: Prompt | None = None
    verify_all: Callable[[Sequence[tuple[str, str]]], list[Verdict]] | None = None


class RowsDataModule(pl.LightningDataModule):
    """Rows for training and validation.

    Args:
        train_rows: Training rows, in the order of their source.
        validation_rows: Rows of held-out problems.
        source: Source of the rows.
        rows_sha256: Hash of the rows before the mask.
        leaked: Number of rows that were dropped as problems of the benchmark.
        scores: Name -> fingerprint of the stored scores that were read.
        learnt: Name -> values that a mask or column fitted to the training rows.
        batch_size: Rows per micro-batch.
        micro_batch_assignment: As in `cft/data/batches.py`.
        seed: Seed of the order of rows.
        read: Further facts about the reading of the rows.
        rejected: As in `RowsRequest`; if above 0, rows of problems without both kinds of rows are dropped.

    Raises:
        NothingToTrain: Rows are compared, and no problem has both kinds.
    """

    more = "bring more rows"

    def __init__(
        self,
        train_rows: list[TokenRow],
        validation_rows: list[TokenRow],
        *,
        source: DataSource,
        rows_sha256: str,
        leaked: int,
        scores: dict[str, str],
        learnt: dict[str, dict[str, Any]],
        batch_size: int,
        micro_batch_assignment: MicroBatchAssignment,
        seed: int,
        read: Mapping[str, Any] | None = None,
        rejected: int = 0,
    ) -> None:
        super().__init__()
        self.read = dict(read or {})
        self.rejected = rejected
        if rejected:
            self.read |= {"rejected": rejected}
            train_rows = self._compared(train_rows, source, part="train")
            validation_rows = self._compared(validation_rows, source, part="validation")
        self.train_rows, self.validation_rows = train_rows, validation_rows
        self.groups = groups_of(train_rows) if rejected else []
        self.source = source
        self.rows_sha256, self.leaked = rows_sha256, leaked
        self.scores, self.learnt = scores, learnt
        self.batch_size, self.seed = batch_size, seed
        self.micro_batch_assignment: MicroBatchAssignment = micro_batch_assignment

    def _compared(self, rows: list[TokenRow], source: DataSource, *, part: str) -> list[TokenRow]:
        """The rows of problems with both chosen and rejected rows; prints what was dropped."""
        kept, dropped = whole_groups(rows)
        self.read |= {f"{part}_{name}": number for name, number in dropped.items()}
        self.read[f"{part}_groups"] = groups = len(groups_of(kept))
        counts = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in dropped.items())
        if part == "train" and not kept:
            raise NothingToTrain(
                f"{source.place}: nothing to compare: of {len(rows)} rows for training no problem has both a right (chosen) "
                f"and a wrong (rejected) response ({counts}). Sample more responses per problem (cft annotate "
                "responses=rollouts num_samples=8), or provide rows with prompt, chosen and rejected (data=rows)"
            )
        if part == "train" or rows:
            console.print(f"Groups of rows ({part}): {groups:,}; dropped: {counts}")
        return kept

    @property
    def rows_of_a_place(self) -> int:
        """Maximal number of rows per unit of `batch_size`: a group has several."""
        return 1 + self.rejected

    def facts(self) -> dict[str, Any]:
        """Facts for a run's results; fractions 0-1 of response tokens."""
        response = sum(int((row.token_group >= 0).sum()) for row in self.train_rows)
        eligible = sum(int((row.weight != 0).sum()) for row in self.train_rows)
        return {
            **self.read,
            "train_rows": len(self.train_rows),
            "validation_rows": len(self.validation_rows),
            "rows_sha256": self.rows_sha256,
            "rows_dropped_as_benchmark_problems": self.leaked,
            "rows_without_eligible_tokens": sum(not row.weight.any() for row in self.train_rows),
            "response_tokens": response,
            "eligible_tokens": eligible,
            "eligible_fraction": eligible / response,
            "tokens_in_no_group": sum(int((row.token_group == UNKNOWN_GROUP).sum()) for row in self.train_rows),
            "scores": self.scores,
            "learnt": self.learnt,
        }

    def warnings(self) -> list[str]:
        """Reasons why training on these rows may show little, although the configuration is valid."""
        found = []
        if len(self.train_rows) < FEW_ROWS:
            found.append(
                f"{len(self.train_rows)} rows are few to train on (below {FEW_ROWS}): the result will depend more on these "
                f"rows than on the method; {self.more}"
            )
        groups_N = np.concatenate([row.token_group[row.token_group >= 0] for row in self.train_rows])
        if 0 < (unknown := int((groups_N == UNKNOWN_GROUP).sum())) < len(groups_N):
            found.append(
                f"For {unknown:,} of the {len(groups_N):,} response tokens it is not known whether they are critical "
                "(positions omitted by cft annotate positions=..., or wrong responses): they are in no group of the metrics"
            )
        groups_N = groups_N[groups_N != UNKNOWN_GROUP]
        if len(groups_N) and (groups_N > 0).mean() > ALL_CRITICAL:
            found.append(
                f"{(groups_N > 0).mean():.0%} of the response tokens are critical: almost any replacement leads to a wrong "
                "answer, so the mask hardly selects; check the verifier, max_new_tokens of the annotation (are continuations "
                "cut off?) and the model"
            )
        return found

    def settings(self) -> dict[str, str]:
        """Settings that distinguish runs whose scores or annotations differ but have the same names."""
        read = {f"scores.{name}": digest[:12] for name, digest in self.scores.items()}
        return read | {f"learnt.{name}": sha256_json(facts)[:12] for name, facts in self.learnt.items()}

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        return self._loader(self.train_rows, shuffle=True)

    def val_dataloader(self) -> DataLoader[TokenBatch]:
        if self.validation_rows:
            return self._loader(self.validation_rows, shuffle=False)
        # One empty batch: without batches Lightning skips validation, but val/accuracy needs no rows.
        empty = RowDataset([], score_names=self.train_rows[0].scores.keys(), held_out=True)
        micro = MicroBatch((), StepCounts(), () if self.rejected else None)
        return DataLoader(empty, sampler=[micro], batch_size=None)

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
            groups=groups_of(rows) if self.rejected else (),
            rejected=self.rejected,
        )
        return loader(rows, sampler, held_out=not shuffle)


def require_loss(place: str, mask: Mask, rows: Sequence[TokenRow], *, total: int, more: str) -> None:
    """Raises NothingToTrain if no token carries loss. total: number of rows with held-out ones. more: remedy for few rows."""
    if not any(row.weight.any() for row in rows):
        raise NothingToTrain(
            f"{place}: nothing to train on: {total} rows, {len(rows)} for training, and "
            f"mask {type(mask).__name__} selects no token in them. {more} or choose another mask."
        )


def require_two_groups(rows: Sequence[TokenRow]) -> None:
    """Raises BadValue if all tokens with loss are in one group, so that a loss over token groups has nothing to compare."""
    group_N = np.concatenate([row.scores[GROUP][row.weight != 0] for row in rows])
    picked = int((group_N > 0).sum())
    if picked in (0, len(group_N)):
        whole = "group 1, the tokens that the grouping selects" if picked else "group 0, those that it does not select"
        raise BadValue(
            f"groups: all {len(group_N):,} tokens with loss are in one group ({whole}), so a loss over groups would have "
            "nothing to compare; expected a mask and a grouping that differ: set mask=all, or another groups=..."
        )
