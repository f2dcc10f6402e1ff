"""Every method in batches: the same sums for any split into micro-batches and chunks, and twenty steps of training."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from cft.batches import TokenRow
from cft.loss import TermSum
from cft.reference_model import Initial
from cft.types import StepCounts
from tests.fakes import random_llama
from tests.gradient_driver import Recorder, Rows
from tests.methods import OPTIONS, VOCABULARY, objective, random_logits, step_loss, terms_of, token_rows

STEPS = 20
# With other settings than their files', so that gradient through weights and rows is tried too.
METHODS = (*OPTIONS, "weighting=propagation weighting.detached=true", "loss=shad loss.aggregation.detached=false")
METHODS = (*METHODS, "loss=sft_go weighting=focal", "regularizer=sed loss=shad weighting=excess_loss")


def sums(method: str, *, rows_at_a_time: int, chunk_tokens: int) -> tuple[list[list[TermSum]], Tensor]:
    """The terms of each micro-batch, and the gradient of the step's loss."""
    rows = token_rows()
    leaves = [z.requires_grad_() for z in random_logits(rows, seed=1)]
    reference = random_logits(rows, seed=2)
    counts = sum((row.counts() for row in rows), StepCounts())
    built = objective(method, chunk_tokens=chunk_tokens)
    found = []
    for start in range(0, len(rows), rows_at_a_time):
        part = slice(start, start + rows_at_a_time)
        terms = terms_of(built, rows[part], leaves[part], reference[part], progress=0.25)
        step_loss(terms, counts).backward()
        found.append(list(terms))
    return found, torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None])


@pytest.mark.parametrize("method", METHODS)
def test_sums_do_not_depend_on_the_split_into_micro_batches_and_chunks(method: str) -> None:
    """Uneven rows, one of them without an eligible token. Chunks but the last are computed again in the backward pass."""
    whole, gradient = sums(method, rows_at_a_time=4, chunk_tokens=1024)
    for rows_at_a_time, chunk_tokens in ((4, 1), (2, 5), (1, 1024)):
        parts, again = sums(method, rows_at_a_time=rows_at_a_time, chunk_tokens=chunk_tokens)
        for term, split in zip(whole[0], zip(*parts, strict=True), strict=True):
            assert sum(t.count for t in split) == term.count > 0
            assert sum(float(t.sum.detach()) for t in split) == pytest.approx(float(term.sum.detach()), rel=1e-12)
        torch.testing.assert_close(again, gradient, rtol=0, atol=1e-13)


def trained(method: str, *, accumulate: int, batch: int, rows: list[TokenRow]) -> Recorder:
    """Weights of float64, so that a selection by rank cannot turn on a rounding."""
    model: Any = random_llama(vocab=VOCABULARY, spread=0.1).double()
    built = objective(method)
    reference = Initial().attach(model) if "reference_distribution" in built.needs else None
    module = Recorder(
        model=model,
        objective=built,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        schedule="constant",
        warmup_fraction=0.0,
        probe_every_n_steps=0,
        reference=reference,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=Rows(batch, rows))
    return module


def uneven_rows() -> list[TokenRow]:
    """Ten rows, two of them without an eligible token: windows of four leave the last one of an epoch short."""
    return [row for seed in range(3) for row in token_rows(seed=seed)][:10]


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_under_accumulation(method: str) -> None:
    """Twenty steps of two micro-batches of two padded rows: a loss or gradient that is not finite would raise."""
    module = trained(method, accumulate=2, batch=2, rows=uneven_rows())
    gradients = [g for g in module.recorded if g is not None]
    assert len(gradients) == STEPS
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    assert max(float(g.abs().max()) for g in gradients) > 1e-6


# One of each kind: selection by rank, whole rows, groups with a schedule, a term with a count of its own.
@pytest.mark.parametrize(
    "method", ["weighting=excess_loss", "weighting=propagation", "loss=sft_go", "loss=nll_entropy"]
)
def test_accumulated_steps_are_those_of_larger_batches(method: str) -> None:
    """Every gradient before clipping, twenty steps on; the objective's own sums are tried for all methods above."""
    small = trained(method, accumulate=2, batch=2, rows=uneven_rows())
    large = trained(method, accumulate=1, batch=4, rows=uneven_rows())
    for ours, theirs in zip(small.recorded, large.recorded, strict=True):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * float(ours.abs().max()))
