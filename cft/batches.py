"""Rows -> micro-batches: order, sharding over ranks, padding, and the counts of the optimizer step they belong to.

Order: permutation(seed, epoch) of the rows. Micro-batch m of rank r holds the global positions
[(m * world + r) * batch_size, ... + batch_size), so every optimizer step sees the same rows for any number of ranks and
any split into micro-batches. A rank for which no row is left gets an empty micro-batch, which contributes zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from cft.types import StepCounts, TokenBatch


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row ready for training. ids: [L] int64; weight: [L] float32; probe: [L] int8; scores: [L] float32 each (see
    TokenBatch)."""

    row_id: str
    ids: NDArray[np.int64]
    weight: NDArray[np.float32]
    probe: NDArray[np.int8]
    scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def counts(self) -> StepCounts:
        """What the row adds to its optimizer step. The first token is predicted by nothing and never counted."""
        eligible, probe = int((self.weight[1:] > 0).sum()), self.probe[1:]
        return StepCounts(
            eligible, int((probe >= 0).sum()), int((probe == 1).sum()), int((probe == 0).sum()), int(eligible > 0)
        )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Row indices of one micro-batch of one rank, and the counts of its whole optimizer step."""

    rows: tuple[int, ...]
    step_counts: StepCounts


def collate(rows: Sequence[TokenRow], *, step_counts: StepCounts) -> TokenBatch:
    """Pad on the right to the longest row. No rows: one padding token that carries nothing."""
    width = max((len(row.ids) for row in rows), default=1)
    size = max(len(rows), 1)
    ids_BT = np.zeros((size, width), dtype=np.int64)
    weight_BT = np.zeros((size, width), dtype=np.float32)
    probe_BT = np.full((size, width), -1, dtype=np.int8)
    names = rows[0].scores.keys() if rows else ()
    scores = {name: np.zeros((size, width), dtype=np.float32) for name in names}
    for b, row in enumerate(rows):
        ids_BT[b, : len(row.ids)] = row.ids
        weight_BT[b, : len(row.ids)] = row.weight
        probe_BT[b, : len(row.ids)] = row.probe
        for name in names:
            scores[name][b, : len(row.ids)] = row.scores[name]
    lengths = [len(row.ids) for row in rows] or [1]
    return TokenBatch(
        torch.from_numpy(ids_BT),
        torch.tensor(lengths),
        torch.from_numpy(weight_BT),
        torch.from_numpy(probe_BT),
        tuple(row.row_id for row in rows),
        {name: torch.from_numpy(column) for name, column in scores.items()},
        step_counts,
    )


class RowDataset(Dataset[TokenBatch]):
    """Token batches by MicroBatch, so that a batch always comes with the counts of its step."""

    def __init__(self, rows: Sequence[TokenRow]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, micro: MicroBatch) -> TokenBatch:
        return collate([self.rows[i] for i in micro.rows], step_counts=micro.step_counts)


class GlobalOrderSampler(Sampler[MicroBatch]):
    """Micro-batches for one rank; see the head of this file. Lightning calls set_epoch.

    counts: of each row. accumulate: micro-batches of a rank in one optimizer step.
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
    ) -> None:
        self.counts, self.batch_size, self.accumulate = counts, batch_size, accumulate
        self.rank, self.world = rank, world
        self.seed, self.shuffle = seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(len(self.counts))
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.counts))

    def __len__(self) -> int:
        return -(-len(self.counts) // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[MicroBatch]:
        order = self.order()
        step_rows = self.accumulate * self.batch_size * self.world
        for m in range(len(self)):
            start = (m * self.world + self.rank) * self.batch_size
            step = m // self.accumulate
            totals = sum((self.counts[i] for i in order[step * step_rows : (step + 1) * step_rows]), StepCounts())
            yield MicroBatch(tuple(order[start : start + self.batch_size].tolist()), totals)


def loader(rows: Sequence[TokenRow], sampler: GlobalOrderSampler) -> DataLoader[TokenBatch]:
    """batch_size=None: the sampler's items are whole micro-batches, and Lightning finds its set_epoch."""
    return DataLoader(RowDataset(rows), sampler=sampler, batch_size=None)
