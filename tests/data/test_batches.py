"""Dealing rows to micro-batches and ranks: a step's rows are the same however they are dealt, and so are its counts."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cft.data.batches import GlobalOrderSampler, MicroBatch, MicroBatchAssignment, TokenRow, assigned_by_tokens, collate
from cft.types import StepCounts

ROWS = 29
DEALS: tuple[MicroBatchAssignment, ...] = ("in_order", "by_length", "by_tokens")
rng = np.random.default_rng(0)
LENGTHS = rng.integers(5, 200, ROWS).tolist()
COUNTS = [StepCounts(i, i + 1, i, 1, 1) for i in range(ROWS)]


def steps(
    micro_batch_assignment: MicroBatchAssignment, *, world: int, accumulate: int, batch: int, epoch: int = 0
) -> list[list[list[MicroBatch]]]:
    """[step][moment][rank]"""
    per_rank = []
    for rank in range(world):
        sampler = GlobalOrderSampler(
            COUNTS, batch_size=batch, accumulate=accumulate, rank=rank, world=world, seed=3, shuffle=True,
            lengths=LENGTHS, micro_batch_assignment=micro_batch_assignment,
        )  # fmt: skip
        sampler.set_epoch(epoch)
        per_rank.append(list(sampler))
        assert len(per_rank[-1]) == len(sampler)  # Lightning counts on it
    moments = [list(moment) for moment in zip(*per_rank, strict=True)]
    return [moments[i : i + accumulate] for i in range(0, len(moments), accumulate)]


def sets_of_rows(found: list[list[list[MicroBatch]]]) -> list[list[int]]:
    return [sorted(i for moment in step for micro in moment for i in micro.rows) for step in found]


@pytest.mark.parametrize("micro_batch_assignment", DEALS)
def test_a_step_holds_the_same_rows_for_any_split(micro_batch_assignment: MicroBatchAssignment) -> None:
    expected = sets_of_rows(steps("in_order", world=1, accumulate=1, batch=8, epoch=1))
    assert sorted(i for rows in expected for i in rows) == list(range(ROWS))
    for world, accumulate, batch in ((1, 1, 8), (1, 4, 2), (2, 2, 2), (4, 1, 2), (2, 4, 1)):
        found = steps(micro_batch_assignment, world=world, accumulate=accumulate, batch=batch, epoch=1)
        assert sets_of_rows(found) == expected
        for step, rows in zip(found, expected, strict=True):
            totals = {micro.step_counts for moment in step for micro in moment}
            assert totals == {sum((COUNTS[i] for i in rows), StepCounts())}


@pytest.mark.parametrize("micro_batch_assignment", DEALS)
def test_an_interrupted_epoch_goes_on_with_the_steps_that_are_left(
    micro_batch_assignment: MicroBatchAssignment,
) -> None:
    def sampler() -> GlobalOrderSampler:
        return GlobalOrderSampler(
            COUNTS,
            batch_size=2,
            accumulate=2,
            rank=1,
            world=2,
            seed=3,
            shuffle=True,
            lengths=LENGTHS,
            micro_batch_assignment=micro_batch_assignment,
        )

    whole, rest = list(sampler()), sampler()
    rest.start_at(epoch=0, step=2)
    assert list(rest) == whole[4:]


def padding(found: list[list[list[MicroBatch]]]) -> int:
    return sum(
        max(LENGTHS[i] for i in micro.rows) * len(micro.rows) - sum(LENGTHS[i] for i in micro.rows)
        for step in found
        for moment in step
        for micro in moment
        if micro.rows
    )


def test_rows_by_length_need_less_padding_and_ranks_work_on_like_rows() -> None:
    sizes = {"world": 2, "accumulate": 4, "batch": 2}
    assert padding(steps("by_length", **sizes)) < 0.4 * padding(steps("in_order", **sizes))
    for step in steps("by_length", **sizes):
        longest = [max(LENGTHS[i] for micro in moment for i in micro.rows) for moment in step]
        assert longest == sorted(longest, reverse=True)


@pytest.mark.parametrize(("world", "accumulate"), product((1, 2), (2, 4)))
def test_rows_by_tokens_give_micro_batches_of_one_size(world: int, accumulate: int) -> None:
    """No micro-batch is larger than the mean by more than one row of the step."""
    for step in steps("by_tokens", world=world, accumulate=accumulate, batch=8 // world // accumulate * 2 or 1):
        tokens = [sum(LENGTHS[i] for i in micro.rows) for moment in step for micro in moment]
        longest = max(LENGTHS[i] for moment in step for micro in moment for i in micro.rows)
        assert max(tokens) <= sum(tokens) / len(tokens) + longest


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=40), st.integers(1, 9))
@example([4] * 5, 4)  # two rows share a bin, whatever one does
def test_dealing_by_tokens_keeps_every_row_and_is_near_the_best(lengths: list[int], bins: int) -> None:
    rows = list(range(100, 100 + len(lengths)))
    lots = assigned_by_tokens(rows, lengths, bins=bins)
    assert sorted(i for lot in lots for i in lot) == rows
    tokens = [sum(lengths[i - 100] for i in lot) for lot in lots]
    assert tokens == sorted(tokens, reverse=True)
    # The fullest bin holds one row, or its last row is none of the `bins` longest and found the bin at most as full as the
    # mean of all other rows.
    last = sorted([*lengths, *[0] * bins], reverse=True)[bins]
    assert bins * max(tokens) <= max(bins * max(lengths), sum(lengths) + (bins - 1) * last)


def test_dealing_by_length_wants_the_lengths() -> None:
    with pytest.raises(ValueError, match=r"micro_batch_assignment=by_tokens.*all 29 rows, found 0"):
        GlobalOrderSampler(
            COUNTS,
            batch_size=2,
            accumulate=2,
            rank=0,
            world=1,
            seed=0,
            shuffle=False,
            micro_batch_assignment="by_tokens",
        )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=6), st.integers(0, 2**16))
def test_ids_weights_probes_and_scores_travel_together(lengths: list[int], seed: int) -> None:
    """Every column says which token it belongs to, and still does after collation."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, length in enumerate(lengths):
        ids = rng.integers(1, 100, length)
        rows.append(TokenRow(f"r{number}", ids, ids.astype(np.float32), (ids % 2).astype(np.int8), {"s": ids * 0.5}))
    batch = collate(rows, step_counts=StepCounts())
    real = batch.input_ids_BT > 0
    assert real.sum(1).tolist() == batch.lengths_B.tolist() == lengths
    assert (batch.weight_BT == batch.input_ids_BT).all()
    assert (batch.scores["s"] == batch.input_ids_BT * 0.5).all()
    assert (batch.token_group_BT[real] == batch.input_ids_BT[real] % 2).all()
    assert (batch.token_group_BT[~real] == -1).all()


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=12))
def test_a_row_is_needed_up_to_its_last_weight(weights: list[float]) -> None:
    row = TokenRow("r", np.arange(len(weights)), np.array(weights, np.float32), np.zeros(len(weights), np.int8))
    last = max((i for i, weight in enumerate(weights) if weight), default=0)
    assert row.needed() == last  # the token at position p is predicted by p states
