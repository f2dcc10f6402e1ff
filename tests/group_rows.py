"""Rows in groups, and batches of them as in training, for losses that compare rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cft.data.batches import GlobalOrderSampler, RowDataset, TokenRow, loader
from cft.data.groups import groups_of
from cft.types import TokenBatch
from tests.methods import VOCABULARY

SIZES = ((1, 3), (2, 2), (1, 1), (3, 4), (1, 2))  # chosen and rejected rows of each group


def group_rows(sizes: tuple[tuple[int, int], ...] = SIZES, *, seed: int = 0) -> list[TokenRow]:
    """Uneven rows with weights; members of a group are not adjacent. All numbers are exact in float32."""
    rng = np.random.default_rng(seed)
    rows = []
    for g, (chosen, rejected) in enumerate(sizes):
        for k in range(chosen + rejected):
            prompt_len, response_len = int(rng.integers(1, 4)), int(rng.integers(2, 8))
            length = prompt_len + response_len
            response = np.arange(length) >= prompt_len
            weight = np.where(response, rng.choice([0.0, 0.5, 1.0, 1.0, 2.0], length), 0.0)
            weight[-1] = 1.0
            scores = {
                "reference_logprob": -rng.integers(1, 30, length) / 8,
                "contrast": rng.integers(0, 65, length) / 64,
            }
            rows.append(
                TokenRow(
                    f"g{g}r{k}",
                    rng.integers(0, VOCABULARY, length),
                    weight.astype(np.float32),
                    np.where(response, 2, -1).astype(np.int8),
                    {name: (x * response).astype(np.float32) for name, x in scores.items()},
                    group=f"g{g}",
                    chosen=k < chosen,
                )
            )
    return [rows[i] for i in rng.permutation(len(rows))]


def sampler_of(
    rows: list[TokenRow],
    *,
    rejected: int = 2,
    batch_size: int = 2,
    accumulate: int = 1,
    rank: int = 0,
    world: int = 1,
    epoch: int = 0,
    shuffle: bool = True,
    by: str = "in_order",
) -> GlobalOrderSampler:
    sampler = GlobalOrderSampler(
        [row.counts() for row in rows],
        batch_size=batch_size,
        accumulate=accumulate,
        rank=rank,
        world=world,
        seed=3,
        shuffle=shuffle,
        lengths=[len(row.ids) for row in rows],
        micro_batch_assignment=by,  # type: ignore[arg-type]
        groups=groups_of(rows),
        rejected=rejected,
    )
    sampler.set_epoch(epoch)
    return sampler


def loader_of(rows: list[TokenRow], **dealt: Any) -> torch.utils.data.DataLoader[TokenBatch]:
    return loader(rows, sampler_of(rows, **dealt))


def batches_of(rows: list[TokenRow], sampler: GlobalOrderSampler, *, held_out: bool = False) -> list[TokenBatch]:
    dataset = RowDataset(rows, score_names=rows[0].scores.keys(), held_out=held_out)
    return [dataset[micro] for micro in sampler]
