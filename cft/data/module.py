"""What a training reads: token rows for training and validation, whatever they were made from."""

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
    """No token of the rows carries loss; the message names them and the remedy."""


@dataclass(frozen=True, slots=True)
class RowsRequest:
    """What a training asks of its rows.

    mask: picks the tokens with loss. group_mask: splits the metrics into critical and other tokens. columns: further scores
    of every token, by the name under which the objective asks for them (`cft/data/columns.py`). annotations_dir: where an
    annotation is looked for by its name. tokenizer_sha256: of the model's tokenizer. seed: of the order of rows, and of what
    is drawn. exclude: normalized questions that must not be trained on: the benchmark's validation and test problems.
    tokenizer, prompt: where rows are yet to be encoded. verify_all: verdicts of (response, gold answer), where rows are yet to
    be split at their answers.
    rejected: how many rejected rows the loss compares a chosen one with, 0 = rows are trained on by themselves.
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
        train_rows: In the order of their source.
        validation_rows: Those of the problems that are held out.
        source: Where they are from.
        rows_sha256: Of the rows before the mask.
        leaked: Rows that were dropped as problems of the benchmark.
        scores: Name -> fingerprint of the stored scores that were read.
        learnt: Name -> what a mask or column learnt from the training rows.
        read: Further facts about the reading of the rows.
        batch_size: Rows of a micro-batch; `micro_batch_assignment` and `seed` are as in `cft/data/batches.py`.
        rejected: As in `RowsRequest`; rows of problems without both kinds of rows are dropped then.

    Raises:
        NothingToTrain: No problem has both kinds.
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
        """Those of problems that have something to compare; says what was dropped."""
        kept, dropped = whole_groups(rows)
        self.read |= {f"{part}_{name}": number for name, number in dropped.items()}
        self.read[f"{part}_groups"] = groups = len(groups_of(kept))
        counts = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in dropped.items())
        if part == "train" and not kept:
            raise NothingToTrain(
                f"{source.place}: nothing to compare: of {len(rows)} rows for training no problem has both a right (chosen) "
                f"and a wrong (rejected) response ({counts}). Sample more of each problem (cft annotate responses=rollouts "
                "num_samples=8), or bring rows with prompt, chosen and rejected (data=rows)"
            )
        if part == "train" or rows:
            console.print(f"Groups of rows ({part}): {groups:,}; dropped: {counts}")
        return kept

    @property
    def rows_of_a_place(self) -> int:
        """Rows that one of `batch_size` can be."""
        return 1 + self.rejected

    def facts(self) -> dict[str, Any]:
        """Counts that belong in a run's results; fractions 0-1 of response tokens."""
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
        """What makes a training on these rows tell little, though nothing is wrong with the configuration."""
        found = []
        if len(self.train_rows) < FEW_ROWS:
            found.append(
                f"{len(self.train_rows)} rows are few to train on (below {FEW_ROWS}): the result will say more of these rows "
                f"than of the method; {self.more}"
            )
        groups_N = np.concatenate([row.token_group[row.token_group >= 0] for row in self.train_rows])
        if 0 < (unknown := int((groups_N == UNKNOWN_GROUP).sum())) < len(groups_N):
            found.append(
                f"Of {unknown:,} of the {len(groups_N):,} response tokens it is not known whether they are critical (positions "
                "that cft annotate positions=... left out, or wrong responses): they are in neither group of the metrics"
            )
        groups_N = groups_N[groups_N != UNKNOWN_GROUP]
        if len(groups_N) and (groups_N > 0).mean() > ALL_CRITICAL:
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
    """total: rows with those that are held out. more: how one gets more of them."""
    if not any(row.weight.any() for row in rows):
        raise NothingToTrain(
            f"{place}: nothing to train on: {total} rows, {len(rows)} for training, and "
            f"mask {type(mask).__name__} picks no token in them. {more} or choose another mask."
        )


def require_two_groups(rows: Sequence[TokenRow]) -> None:
    """A loss that compares groups of tokens would be another one if all that carry loss were of one group."""
    group_N = np.concatenate([row.scores[GROUP][row.weight != 0] for row in rows])
    picked = int((group_N > 0).sum())
    if picked in (0, len(group_N)):
        whole = (
            "group 1, the tokens that the grouping picks" if picked else "group 0, those that the grouping leaves out"
        )
        raise BadValue(
            f"groups: all {len(group_N):,} tokens with loss are of one group ({whole}), and a loss over groups would compare "
            "nothing; expected a mask and a grouping that differ: set mask=all, or another groups=..."
        )
