"""Where theory says that a method is plain fine-tuning, it is, in value and gradient to 1e-7."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from cft.data.batches import TokenRow
from cft.types import StepCounts
from tests.closed_forms import DFT, PER_ROW, SFT, TABLE
from tests.methods import OPTIONS, objective, random_logits, step_loss, terms_of, token_rows

pytestmark = pytest.mark.numerics

ATOL = 1e-7
ROWS = token_rows()
LOGITS = random_logits(ROWS, seed=1)
REFERENCE = random_logits(ROWS, seed=2)
# The method with its knob turned off, and what it becomes: from the table of methods.
LIMITS = [(f"{name} {knob}", becomes) for name, case in TABLE.items() for knob, becomes in case.limits]
# Losses whose value is another one, but whose gradient is that of plain fine-tuning or of DFT.
GRADIENT_LIMITS = [
    ("loss=gem loss.token_loss.beta=1.0", SFT),
    ("loss=target_sft loss.token_loss.eta=0.0", DFT),
    ("loss=power loss.token_loss.exponent=1.0", DFT),
]
# With a reference that is the policy itself.
EQUAL_REFERENCE = ["loss=nll_kl", "loss=asft", "regularizer=kl_from_reference", "regularizer=kl_to_reference"]
EQUAL_REFERENCE += ["weighting=iw_sft"]


def measured(
    method: str, rows: list[TokenRow] = ROWS, *, reference: list[torch.Tensor] = REFERENCE, progress: float = 0.0
) -> tuple[float, torch.Tensor]:
    leaves = [z.clone().requires_grad_() for z in LOGITS]
    counts = sum((row.counts() for row in rows), StepCounts())
    loss = step_loss(terms_of(objective(method), rows, leaves, reference, progress=progress), counts)
    loss.backward()
    return float(loss.detach()), torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None])


@cache
def usual(method: str) -> tuple[float, torch.Tensor]:
    """`measured` of the rows above; what methods become when turned off is asked for again and again."""
    return measured(method)


def assert_same(found: tuple[float, torch.Tensor], expected: tuple[float, torch.Tensor]) -> None:
    assert found[0] == pytest.approx(expected[0], abs=ATOL)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=ATOL)


def with_own_logprobs(rows: list[TokenRow]) -> list[TokenRow]:
    """The rows with the policy's own log-probs as those of the reference; float32, as stored."""
    changed = []
    for row, logits in zip(rows, LOGITS, strict=True):
        own = logits.log_softmax(-1)[torch.arange(len(row.ids) - 1), torch.from_numpy(row.ids[1:])]
        column = np.r_[0.0, own.numpy()].astype(np.float32)
        changed.append(
            TokenRow(row.row_id, row.ids, row.weight, row.token_group, {**row.scores, "reference_logprob": column})
        )
    return changed


def in_one_group(rows: list[TokenRow]) -> list[TokenRow]:
    return [
        TokenRow(r.row_id, r.ids, r.weight, r.token_group, {**r.scores, "group": np.zeros(len(r.ids), np.float32)})
        for r in rows
    ]


@pytest.mark.parametrize(("method", "becomes"), LIMITS)
def test_turned_off_it_is_the_plainer_method(method: str, becomes: str) -> None:
    assert_same(usual(method), usual(becomes))


@pytest.mark.parametrize(("method", "becomes"), GRADIENT_LIMITS)
def test_turned_off_it_has_the_plainer_gradient(method: str, becomes: str) -> None:
    torch.testing.assert_close(usual(method)[1], usual(becomes)[1], rtol=0, atol=ATOL)


@pytest.mark.parametrize("method", EQUAL_REFERENCE)
def test_with_itself_as_reference_it_is_plain_fine_tuning(method: str) -> None:
    assert_same(measured(method, with_own_logprobs(ROWS), reference=LOGITS), usual(SFT))


def test_psft_with_itself_as_reference_has_the_gradient_of_plain_fine_tuning() -> None:
    rows = with_own_logprobs(ROWS)
    torch.testing.assert_close(measured("loss=psft", rows)[1], measured(SFT)[1], rtol=0, atol=ATOL)


def test_distillation_from_itself_leaves_the_hard_part_alone() -> None:
    """The soft part pulls towards p, which is where the policy stands: half of plain fine-tuning's gradient is left."""
    found = measured("loss=distillation", reference=LOGITS)[1]
    torch.testing.assert_close(found, measured(SFT)[1] / 2, rtol=0, atol=ATOL)


@pytest.mark.parametrize("method", ["loss=sft_go", "loss=shad", "loss=shad loss.aggregation.detached=false"])
def test_one_group_is_no_group(method: str) -> None:
    assert_same(measured(method, in_one_group(ROWS)), measured(PER_ROW))


def test_sft_go_ends_as_plain_fine_tuning() -> None:
    assert_same(measured("loss=sft_go", progress=1.0), measured(PER_ROW))


def test_the_masks_weights_multiply_the_methods() -> None:
    """Weights of one leave the method alone (the table above), weights of two double it."""
    for method in ("weighting=uniform", "weighting=focal", "weighting=excess_loss"):
        rows = [TokenRow(r.row_id, r.ids, 2 * r.weight, r.token_group, r.scores) for r in ROWS]
        value, gradient = measured(method)
        assert_same(measured(method, rows), (2 * value, 2 * gradient))


def test_every_option_has_a_limit() -> None:
    """Those that are never plain fine-tuning, whatever their settings, have tests of their own above."""
    named = {method.split()[0] for method, _ in LIMITS}
    never = {"loss=psft", "loss=shad", "loss=gem", "loss=target_sft", "loss=f_divergence"}
    assert set(OPTIONS) - named == never


@pytest.mark.parametrize("method", sorted(set(OPTIONS) - {SFT, "weighting=uniform"}))
def test_turned_on_it_is_not(method: str) -> None:
    """The knob does something: as configured, the method differs from what it becomes when turned off."""
    assert (usual(method)[1] - usual(SFT)[1]).abs().max() > 1e-4
