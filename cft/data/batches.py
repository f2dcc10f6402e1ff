"""Assembles rows into micro-batches: order, distribution over ranks, padding, and the counts of the whole optimizer step.

Order: permutation(seed, epoch) of the rows, divided into optimizer steps with equal numbers of rows; the last one may have
fewer. So every step has the same rows for any number of ranks and any split into micro-batches. Assignment within a step:

    in_order     micro-batch m of rank r holds the step's positions [(m * world + r) * batch_size, ... + batch_size)
    by_length    the same after sorting by length: little padding, and ranks process rows of similar length at the same time
    by_tokens    micro-batches of about equal numbers of tokens: least memory and idle time without padding

If no rows remain for a rank, it gets an empty micro-batch, which contributes zero.

For a loss over groups of rows (`cft/losses/group.py`), the same applies to groups instead of rows: batch_size counts groups, a
step consists of whole groups, and a group is in one micro-batch with its rows drawn for the epoch (`cft/data/groups.py`).
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
# Token group of response tokens that are not known to be critical or not; they are in neither group of the metrics.
UNKNOWN_GROUP = 2


def arrays_hash(arrays: Iterable[NDArray[Any]]) -> str:
    """SHA-256 of the arrays' types, shapes and contents, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row for training.

    Args:
        row_id: id of the row.
        ids: [L] int64 token ids.
        weight: [L] float32, see TokenBatch.
        token_group: [L] int8, see TokenBatch.
        scores: [L] float32 each, see TokenBatch.
        group: name of its group, for losses over groups.
        chosen: whether it is a chosen row of its group, else a rejected one.
    """

    row_id: str
    ids: NDArray[np.int64]
    weight: NDArray[np.float32]
    token_group: NDArray[np.int8]
    scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    group: str = ""
    chosen: bool = True

    def counts(self) -> StepCounts:
        """The row's contribution to the counts of its optimizer step. The first token has no prediction and is not counted."""
        eligible, probe = int((self.weight[1:] != 0).sum()), self.token_group[1:]
        return StepCounts(
            eligible, int((probe >= 0).sum()), int((probe == 1).sum()), int((probe == 0).sum()), int(eligible > 0)
        )

    def needed(self) -> int:
        """Index of the last token with weight: the minimal number of positions that a forward pass must compute."""
        weighted = np.flatnonzero(self.weight)
        return int(weighted[-1]) if len(weighted) else 0


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One micro-batch of one rank.

    Args:
        rows: indices of its rows.
        step_counts: counts of the whole optimizer step.
        groups: (index, number of rows) of each group, for losses over groups; the rows of a group are consecutive, with the
            chosen one first.
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
    """Right-pad rows to the longest one. Without rows, the batch has one padding token and the columns `score_names`."""
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
    """Maps a MicroBatch to a token batch with the counts of its step.

    Args:
        rows: all rows.
        score_names: score columns of the rows, which the objective also needs in batches without rows.
        held_out: whether the rows are held out, so that losses keep no state of their groups.
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
    """Yields the micro-batches of one rank, as described in the module docstring. Lightning calls set_epoch.

    Args:
        counts: counts of each row.
        batch_size: rows (or groups) per micro-batch.
        accumulate: micro-batches per rank and optimizer step.
        rank: this rank.
        world: number of ranks.
        seed: seed of the order.
        shuffle: whether to shuffle in each epoch.
        lengths: length of each row in tokens.
        micro_batch_assignment: how the rows of a step are assigned to micro-batches.
        groups: groups of the rows, for losses over groups.
        rejected: rejected rows per group and epoch; 0 = no groups.
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
        self.size = len(groups) if rejected else len(counts)  # rows or groups per epoch
        self.rank, self.world = rank, world
        self.seed, self.shuffle = seed, shuffle
        self.epoch = 0
        self._begun = (-1, 0)  # (epoch, number of its optimizer steps that an interrupted run already did)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def start_at(self, *, epoch: int, step: int) -> None:
        """Skip the first `step` optimizer steps of `epoch`, which an interrupted run already did."""
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
        """The rows of an element of the epoch's order: a single row, or those drawn from a group."""
        if not self.rejected:
            return (unit,)
        epoch = self.epoch if self.shuffle else 0  # held-out groups have the same rows in every epoch
        return drawn(self.groups[unit], rejected=self.rejected, seed=self.seed, epoch=epoch)

    def _assigned(self, units: list[int], *, lengths: list[int], bins: int) -> list[list[int]]:
        """The rows of a step in `bins` micro-batches; consecutive ones run on different ranks at the same time."""
        if self.micro_batch_assignment == "by_tokens":
            return assigned_by_tokens(units, lengths, bins=bins)
        if self.micro_batch_assignment == "by_length":
            # Longest first, so that memory runs out early or never.
            units = [units[k] for k in sorted(range(len(units)), key=lambda k: -lengths[k])]
        return [units[k * self.batch_size : (k + 1) * self.batch_size] for k in range(bins)]


def assigned_by_tokens(rows: Sequence[int], lengths: Sequence[int], *, bins: int) -> list[list[int]]:
    """Distribute `rows` over `bins` micro-batches of about equal numbers of tokens, largest first.

    Greedy: the longest remaining row is assigned to the micro-batch with the fewest tokens.
    """
    micro_batches: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0, number) for number in range(bins)]
    for index in sorted(range(len(rows)), key=lambda i: (-lengths[i], i)):
        tokens, number = heapq.heappop(heap)
        micro_batches[number].append(rows[index])
        heapq.heappush(heap, (tokens + lengths[index], number))
    return [micro_batches[number] for _, number in sorted(heap, key=lambda item: (-item[0], item[1]))]


def loader(rows: Sequence[TokenRow], sampler: GlobalOrderSampler, *, held_out: bool = False) -> DataLoader[TokenBatch]:
    """Data loader over micro-batches. With batch_size=None, each item of the sampler is a whole micro-batch."""
    dataset = RowDataset(rows, score_names=rows[0].scores.keys(), held_out=held_out)  # all rows have the same columns
    return DataLoader(dataset, sampler=sampler, batch_size=None)
