"""Training over groups of rows: the same steps however groups are dealt, and a state of each group that survives a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from cft.errors import BadValue
from cft.losses.example_state import ExampleState
from cft.training.checkpointing.checkpoints import newest_checkpoint, read_checkpoint
from tests.group_driver import SIZES, result, run, save_result
from tests.precision import assert_same
from tests.two_ranks import on_two_ranks

CPU = torch.device("cpu")


class Killed(Exception):
    """Stands for the end of the process."""


class KillAt(pl.Callback):
    """In the backward pass of a micro-batch after `step` optimizer steps: what was decided for the step is not committed."""

    def __init__(self, step: int, *, call: int) -> None:
        self.step, self.call, self.calls = step, call, 0

    def on_before_backward(self, trainer: pl.Trainer, *args: Any) -> None:
        self.calls += trainer.global_step == self.step
        if trainer.global_step == self.step and self.calls == self.call:
            raise Killed


def equal_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_accumulated_steps_are_those_of_one_big_batch(tmp_path: Path) -> None:
    whole, parts = (result(run(tmp_path / str(n), accumulate=n, batch=4 // n)) for n in (1, 4))
    assert len(whole["gradients"]) == len(parts["gradients"]) == 6
    for one, other in zip(whole["gradients"], parts["gradients"], strict=True):
        assert_same(other, one)
    assert_same(parts["state"], whole["state"])
    assert not whole["state"].eq(0.0).any()  # of every group


@pytest.mark.slow
def test_two_ranks_with_two_micro_batches_each_take_the_steps_of_one_big_batch(tmp_path: Path) -> None:
    whole = result(run(tmp_path / "whole", accumulate=1, batch=4))
    on_two_ranks(save_result, tmp_path / "ranks.pt", 2, 2, 1)
    found = [torch.load(tmp_path / f"ranks-{rank}.pt") for rank in range(2)]
    for rank in found:
        for one, other in zip(whole["gradients"], rank["gradients"], strict=True):
            assert_same(other, one)
    assert torch.equal(found[0]["state"], found[1]["state"])
    assert_same(found[0]["state"], whole["state"])


def test_a_killed_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """In the middle of the second epoch, whose estimates build on those of the first."""
    whole = result(run(tmp_path / "whole", accumulate=2, batch=2, dropout=0.3))
    with pytest.raises(Killed):
        run(tmp_path / "cut", accumulate=2, batch=2, dropout=0.3, more=(KillAt(3, call=2),))
    start = newest_checkpoint(tmp_path / "cut")
    assert read_checkpoint(start)["example_state"].shape == (len(SIZES),)
    resumed = result(run(tmp_path / "cut", accumulate=2, batch=2, dropout=0.3, checkpoint=start))
    assert torch.equal(resumed["state"], whole["state"])
    assert equal_bits(resumed["weights"], whole["weights"])
    assert len(resumed["gradients"]) == 3


def commit_together(ranks: list[ExampleState]) -> None:
    """As a reduction over ranks does it: all hand out what they decided, then all get the sum."""
    sent: list[torch.Tensor] = []

    def hand_out(decided: torch.Tensor) -> torch.Tensor:
        sent.append(decided.clone())
        raise Killed

    for state in ranks:
        with pytest.raises(Killed):
            state.commit(hand_out, device=CPU)
    for state in ranks:
        state.commit(lambda decided: torch.stack(sent).sum(0), device=CPU)


def test_ranks_learn_of_each_others_estimates_to_the_bit() -> None:
    """Two ranks that decided for different examples, one of them for none in the second step."""
    first, second = ranks = [ExampleState(initial=0.25) for _ in range(2)]
    for state in ranks:
        state.begin(4)
    some = torch.tensor([0.1, -1 / 3], dtype=torch.float64)
    first.decide(torch.tensor([0, 3]), some)
    second.decide(torch.tensor([1]), torch.tensor([0.0]))
    commit_together(ranks)
    first.decide(torch.tensor([2]), torch.tensor([7.0]))
    second.decide(torch.tensor([], dtype=torch.int64), torch.tensor([]))
    assert second.of(torch.tensor([2])).item() == 0.25  # until the step is done
    commit_together(ranks)
    for state in ranks:
        assert state.saved().tolist() == [some[0].item(), 0.0, 7.0, some[1].item()]


def test_a_state_of_other_rows_is_refused() -> None:
    state = ExampleState(initial=0.0)
    state.begin(4)
    with pytest.raises(BadValue, match="state of 3 problems, but these rows have 4"):
        state.load(torch.zeros(3))
