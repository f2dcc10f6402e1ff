"""Rows -> micro-batches: order, sharding over ranks, padding, and the counts of the optimizer step they belong to.

Order: permutation(seed, epoch) of the rows, cut into optimizer steps of the same number of rows each, the last one short. So
every step sees the same rows for any number of ranks and any split into micro-batches. How they are assigned within a step:

    in_order     micro-batch m of rank r holds the step's positions [(m * world + r) * batch_size, ... + batch_size)
    by_length    the same, after sorting by length: little padding, and the ranks are busy with similar rows at one time
    by_tokens    each micro-batch gets as many tokens as the next: least memory and no waiting where nothing is padded

A rank for which no row is left gets an empty micro-batch, which contributes zero.

For a loss over groups of rows (`cft/losses/group.py`) read "group" for "row": batch_size counts groups, a step is of whole
groups, and a group lies in one micro-batch with the rows that are drawn from it for the epoch (`cft/data/groups.py`).
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from cft.data.groups import Group, drawn
from cft.types import RowGroups, StepCounts, TokenBatch

MicroBatchAssignment = Literal["in_order", "by_length", "by_tokens"]
# Of a response token of which it is not known whether it is critical: in neither group of the metrics.
UNKNOWN_GROUP = 2


def arrays_hash(arrays: Iterable[NDArray[Any]]) -> str:
    """SHA-256 of their types, shapes and contents, in their order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row ready for training. ids: [L] int64; weight: [L] float32; token_group: [L] int8; scores: [L] float32 each (see
    TokenBatch). group: what a loss over groups compares it with; chosen: whether it is one to prefer there."""

    row_id: str
    ids: NDArray[np.int64]
    weight: NDArray[np.float32]
    token_group: NDArray[np.int8]
    scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    group: str = ""
    chosen: bool = True

    def counts(self) -> StepCounts:
        """What the row adds to its optimizer step. The first token is predicted by nothing and never counted."""
        eligible, probe = int((self.weight[1:] != 0).sum()), self.token_group[1:]
        return StepCounts(
            eligible, int((probe >= 0).sum()), int((probe == 1).sum()), int((probe == 0).sum()), int(eligible > 0)
        )

    def needed(self) -> int:
        """Tokens up to the last one that carries weight: the least that a forward pass computes of the row."""
        weighted = np.flatnonzero(self.weight)
        return int(weighted[-1]) if len(weighted) else 0


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Row indices of one micro-batch of one rank, and the counts of its whole optimizer step.

    groups: where rows come in groups, the number of each and how many of the rows are its own, the chosen one first.
    """

    rows: tuple[int, ...]
    step_counts: StepCounts
    groups: tuple[tuple[int, int], ...] | None = None

    def row_groups(self, *, held_out: bool) -> RowGroups | None:
        if self.groups is None:
            return None
        sizes_G = np.array([size for _, size in self.groups], dtype=np.int64)
        first_G = np.cumsum(sizes_G) - sizes_G
        group_B = np.repeat(np.arange(len(sizes_G)), sizes_G)
        rejected_M = np.setdiff1d(np.arange(len(self.rows)), first_G)
        numbers = torch.tensor([number for number, _ in self.groups], dtype=torch.int64)
        return RowGroups(
            torch.from_numpy(first_G),
            torch.from_numpy(rejected_M),
            torch.from_numpy(group_B[rejected_M]),
            None if held_out else numbers,
        )


def collate(
    rows: Sequence[TokenRow],
    *,
    step_counts: StepCounts,
    score_names: Collection[str] = (),
    groups: RowGroups | None = None,
) -> TokenBatch:
    """Pad on the right to the longest row. No rows: one padding token that carries nothing, and the columns `score_names`."""
    width = max((len(row.ids) for row in rows), default=1)
    size = max(len(rows), 1)
    ids_BT = np.zeros((size, width), dtype=np.int64)
    weight_BT = np.zeros((size, width), dtype=np.float32)
    token_group_BT = np.full((size, width), -1, dtype=np.int8)
    names = rows[0].scores.keys() if rows else score_names
    scores = {name: np.zeros((size, width), dtype=np.float32) for name in names}
    for b, row in enumerate(rows):
        ids_BT[b, : len(row.ids)] = row.ids
        weight_BT[b, : len(row.ids)] = row.weight
        token_group_BT[b, : len(row.ids)] = row.token_group
        for name in names:
            scores[name][b, : len(row.ids)] = row.scores[name]
    lengths = [len(row.ids) for row in rows] or [1]
    return TokenBatch(
        torch.from_numpy(ids_BT),
        torch.tensor(lengths),
        torch.from_numpy(weight_BT),
        torch.from_numpy(token_group_BT),
        tuple(row.row_id for row in rows),
        {name: torch.from_numpy(column) for name, column in scores.items()},
        step_counts,
        groups,
    )


class RowDataset(Dataset[TokenBatch]):
    """Token batches by MicroBatch, so that a batch always comes with the counts of its step.

    score_names: the columns of the rows, which batches without rows have as well: the objective reads them there too.
    held_out: whether no state is kept of groups of these rows.
    """

    def __init__(self, rows: Sequence[TokenRow], *, score_names: Collection[str], held_out: bool = False) -> None:
        self.rows, self.score_names, self.held_out = rows, tuple(score_names), held_out

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, micro: MicroBatch) -> TokenBatch:
        rows = [self.rows[i] for i in micro.rows]
        groups = micro.row_groups(held_out=self.held_out)
        return collate(rows, step_counts=micro.step_counts, score_names=self.score_names, groups=groups)


class GlobalOrderSampler(Sampler[MicroBatch]):
    """Micro-batches for one rank; see the head of this file. Lightning calls set_epoch.

    counts, lengths: of each row. accumulate: micro-batches of a rank in one optimizer step. groups, rejected: of the rows, and
    how many rejected ones of a group come in an epoch; none where rows are trained on by themselves.
    """

    def __init__(
        self,
        counts: Sequence[StepCounts],
        *,
        batch_size: int,
        accumulate: int,
        rank: int,
        world: int,
        seed: int,
        shuffle: bool,
        lengths: Sequence[int] = (),
        micro_batch_assignment: MicroBatchAssignment = "in_order",
        groups: Sequence[Group] = (),
        rejected: int = 0,
    ) -> None:
        if micro_batch_assignment != "in_order" and len(lengths) != len(counts):
            raise ValueError(
                f"data.micro_batch_assignment={micro_batch_assignment}: "
                f"expected the lengths of all {len(counts)} rows, found {len(lengths)}"
            )
        self.lengths, self.micro_batch_assignment = lengths, micro_batch_assignment
        self.counts, self.batch_size, self.accumulate = counts, batch_size, accumulate
        self.groups, self.rejected = groups, rejected
        self.size = len(groups) if rejected else len(counts)  # of an epoch
        self.rank, self.world = rank, world
        self.seed, self.shuffle = seed, shuffle
        self.epoch = 0
        self._begun = (-1, 0)  # an epoch, and optimizer steps of it that were done before this process began

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def start_at(self, *, epoch: int, step: int) -> None:
        """Leave out the first `step` optimizer steps of that one epoch: an interrupted run did them."""
        self._begun = (epoch, step)

    def order(self) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.size)
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.size)

    def __len__(self) -> int:
        return -(-self.size // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[MicroBatch]:
        order = self.order()
        step_rows = self.accumulate * self.batch_size * self.world
        epoch, done = self._begun
        for step in range(done if epoch == self.epoch else 0, -(-len(order) // step_rows)):
            units = order[step * step_rows : (step + 1) * step_rows].tolist()
            rows = {unit: self._rows_of(unit) for unit in units}
            totals = sum((self.counts[i] for unit in units for i in rows[unit]), StepCounts())
            if self.rejected:
                totals += StepCounts(problem=len(units))
            lengths = [sum(self.lengths[i] for i in rows[unit]) for unit in units] if len(self.lengths) else []
            bins = self._assigned(
                units, lengths=lengths, bins=-(-len(units) // (self.batch_size * self.world)) * self.world
            )
            for mine in bins[self.rank :: self.world]:
                groups = tuple((unit, len(rows[unit])) for unit in mine) if self.rejected else None
                yield MicroBatch(tuple(i for unit in mine for i in rows[unit]), totals, groups)

    def _rows_of(self, unit: int) -> tuple[int, ...]:
        """The rows of a place in the order of this epoch: a row, or those drawn of a group."""
        if not self.rejected:
            return (unit,)
        epoch = self.epoch if self.shuffle else 0  # what is held out stays the same
        return drawn(self.groups[unit], rejected=self.rejected, seed=self.seed, epoch=epoch)

    def _assigned(self, units: list[int], *, lengths: list[int], bins: int) -> list[list[int]]:
        """The rows of a step in `bins` micro-batches; consecutive ones go to different ranks and run at one time."""
        if self.micro_batch_assignment == "by_tokens":
            return assigned_by_tokens(units, lengths, bins=bins)
        if self.micro_batch_assignment == "by_length":
            # The longest first: memory runs short early or never.
            units = [units[k] for k in sorted(range(len(units)), key=lambda k: -lengths[k])]
        return [units[k * self.batch_size : (k + 1) * self.batch_size] for k in range(bins)]


def assigned_by_tokens(rows: Sequence[int], lengths: Sequence[int], *, bins: int) -> list[list[int]]:
    """`rows` in `bins` micro-batches of about equally many tokens, the largest first.

    The longest row left goes to the micro-batch with the fewest tokens.
    """
    micro_batches: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0, number) for number in range(bins)]
    for index in sorted(range(len(rows)), key=lambda i: (-lengths[i], i)):
        tokens, number = heapq.heappop(heap)
        micro_batches[number].append(rows[index])
        heapq.heappush(heap, (tokens + lengths[index], number))
    return [micro_batches[number] for _, number in sorted(heap, key=lambda item: (-item[0], item[1]))]


def loader(rows: Sequence[TokenRow], sampler: GlobalOrderSampler, *, held_out: bool = False) -> DataLoader[TokenBatch]:
    """batch_size=None: the sampler's items are whole micro-batches, and Lightning finds its set_epoch."""
    dataset = RowDataset(rows, score_names=rows[0].scores.keys(), held_out=held_out)  # all rows have the same columns
    return DataLoader(dataset, sampler=sampler, batch_size=None)
