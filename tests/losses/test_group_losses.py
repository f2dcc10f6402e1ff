"""Losses over groups of rows: gradients against plain formulas over the rows of a group, one after the other, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cft.data.batches import TokenRow
from cft.errors import BadValue
from cft.losses.objective import Objective
from cft.types import TokenBatch
from tests.group_rows import batches_of, group_rows, sampler_of
from tests.methods import OF_GROUPS, VOCABULARY, objective, padded, step_loss
from tests.objectives import on_logits

pytestmark = pytest.mark.numerics

ATOL = 1e-9
ROWS = group_rows()
BY_ID = {row.row_id: i for i, row in enumerate(ROWS)}
OLD = [0.3, -0.7, 0.0, 1.1, 0.5]  # u of the five groups


def logits(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(len(row.ids), VOCABULARY, dtype=torch.float64, generator=generator) for row in ROWS]


class Row:
    """One row by itself, as a reader would write the formulas down: log-probs by a loop over its tokens."""

    def __init__(self, row: TokenRow, logits_LV: Tensor) -> None:
        self.s = torch.zeros((), dtype=torch.float64)
        self.ref, self.critical, self.n = 0.0, torch.zeros((), dtype=torch.float64), 0
        for t in range(1, len(row.ids)):
            weight = float(row.weight[t])
            if weight:
                logprob = torch.log_softmax(logits_LV[t - 1], 0)[int(row.ids[t])]
                stored = float(row.scores["reference_logprob"][t])
                self.s = self.s + weight * logprob
                self.ref += weight * stored
                self.critical = self.critical + weight * (1 - float(row.scores["contrast"][t])) * (logprob - stored)
                self.n += 1

    @property
    def r(self) -> Tensor:
        return self.s - self.ref


Formula = Callable[[Row, list[Row], float], Tensor]  # chosen, rejected, u before


def dpo(chosen: Row, rejected: list[Row], old: float) -> Tensor:
    return torch.stack([-logsigmoid(0.1 * (chosen.r - other.r)) for other in rejected]).mean()


def smoothed(chosen: Row, rejected: list[Row], old: float) -> Tensor:
    margins = torch.stack([0.5 * (chosen.r - other.r) for other in rejected])
    return (-0.8 * torch.sigmoid(margins).log() - 0.2 * torch.sigmoid(-margins).log()).mean()


def cdpo(chosen: Row, rejected: list[Row], old: float) -> Tensor:
    return torch.stack([-logsigmoid(0.1 * (chosen.r - other.critical)) for other in rejected]).mean()


def discriminative(chosen: Row, rejected: list[Row], old: float, *, tau: float = 1.0, gamma: float = 0.85) -> Tensor:
    d = torch.stack([other.s / tau - other.ref for other in rejected]).detach()
    u = math.log((1 - gamma) * math.exp(old) + gamma * float(d.exp().mean()))
    return -chosen.s + torch.stack([(dj - u).exp() * other.s for dj, other in zip(d, rejected, strict=True)]).mean()


def discriminative_mean(chosen: Row, rejected: list[Row], old: float) -> Tensor:
    means = torch.stack([other.s / other.n for other in rejected])
    d = (means / 0.3).detach()
    u = math.log(0.1 * math.exp(old) + 0.9 * float(d.exp().mean()))
    return -chosen.s / chosen.n + ((d - u).exp() * means).mean()


FORMULAS: dict[str, Formula] = {
    "loss=dpo": dpo,
    "loss=dpo loss.aggregation.beta=0.5 loss.aggregation.label_smoothing=0.2": smoothed,
    "loss=cdpo": cdpo,
    "loss=discriminative": discriminative,
    "loss=discriminative loss.aggregation.tau=0.5 loss.aggregation.gamma=0.4": lambda c, r, u: discriminative(
        c, r, u, tau=0.5, gamma=0.4
    ),
    "loss=discriminative_mean": discriminative_mean,
}


def started(method: str, *, chunk_tokens: int = 1024) -> Objective:
    """The objective with a u of every group."""
    built = objective(method, chunk_tokens=chunk_tokens)
    if built.state is not None:
        built.state.begin(len(OLD))
        built.state.load(torch.tensor(OLD, dtype=torch.float64))
    return built


def leaves_of(batch: TokenBatch, leaves: list[Tensor]) -> Tensor:
    if not batch.row_ids:  # of a rank for which no group is left
        return torch.zeros(1, 1, VOCABULARY, dtype=torch.float64, requires_grad=True)
    return padded([leaves[BY_ID[row_id]] for row_id in batch.row_ids])


def gradient(built: Objective, *, epoch: int = 0, **dealt: Any) -> tuple[Tensor, float, list[TokenBatch]]:
    """(gradient of the epoch's losses at the logits of all rows, the losses added up, the micro-batches)."""
    leaves = [z.requires_grad_() for z in logits(1)]
    batches = batches_of(ROWS, sampler_of(ROWS, epoch=epoch, rejected=built.rejected, **dealt))
    total = 0.0
    for batch in batches:
        loss = step_loss(on_logits(built, batch, leaves_of(batch, leaves)), batch.step_counts)
        loss.backward()
        total += float(loss.detach())
    return torch.cat([z.grad if z.grad is not None else torch.zeros_like(z) for z in leaves]), total, batches


def expected(method: str, batches: list[TokenBatch]) -> Tensor:
    """The formula of each group, by names alone: what is chosen and rejected is told by the rows themselves."""
    leaves = [z.requires_grad_() for z in logits(1)]
    for batch in batches:
        names = [row_id.split("r")[0] for row_id in batch.row_ids]
        for name in dict.fromkeys(names):
            rows = [BY_ID[row_id] for row_id, of in zip(batch.row_ids, names, strict=True) if of == name]
            chosen = [Row(ROWS[i], leaves[i]) for i in rows if ROWS[i].chosen]
            rejected = [Row(ROWS[i], leaves[i]) for i in rows if not ROWS[i].chosen]
            (first,) = chosen
            loss = FORMULAS[method](first, rejected, OLD[number_of(name)])
            (loss / batch.step_counts.problem).backward()
    return torch.cat([z.grad if z.grad is not None else torch.zeros_like(z) for z in leaves])


def number_of(name: str) -> int:
    """Groups are numbered by their first rows."""
    return list(dict.fromkeys(row.group for row in ROWS)).index(name)


def test_every_loss_over_groups_has_a_formula() -> None:
    assert {method.split()[0] for method in FORMULAS} == set(OF_GROUPS)


@pytest.mark.parametrize("method", FORMULAS)
def test_the_gradient_is_the_formulas(method: str) -> None:
    found, _, batches = gradient(started(method))
    assert found.abs().max() > 1e-3
    torch.testing.assert_close(found, expected(method, batches), rtol=0, atol=ATOL)


@pytest.mark.parametrize("method", FORMULAS)
def test_sums_do_not_depend_on_how_groups_are_put_into_micro_batches(method: str) -> None:
    """One step of all groups: one batch, four micro-batches, or those of two ranks with two each; any chunk."""
    whole, total, _ = gradient(started(method), batch_size=5)
    for dealt in ({"batch_size": 2, "accumulate": 3}, {"batch_size": 1, "accumulate": 5, "by": "by_tokens"}):
        again, other, _ = gradient(started(method, chunk_tokens=3), **dealt)
        torch.testing.assert_close(again, whole, rtol=0, atol=1e-12)
        assert other == pytest.approx(total, abs=1e-12)
    ranks = [gradient(started(method), batch_size=2, accumulate=2, world=2, rank=rank) for rank in range(2)]
    torch.testing.assert_close(ranks[0][0] + ranks[1][0], whole, rtol=0, atol=1e-12)
    assert ranks[0][1] + ranks[1][1] == pytest.approx(total, abs=1e-12)


def by_hand() -> tuple[list[TokenRow], Tensor]:
    """Two rows of one learnt token each, of a vocabulary of two: log p = log 0.8 and log 0.3."""
    rows = [
        TokenRow(
            name,
            np.array([0, 1]),
            np.array([0, 1], np.float32),
            np.array([-1, 2], np.int8),
            {"reference_logprob": np.array([0, math.log(0.5)], np.float32)},
            group="g",
            chosen=name == "a",
        )
        for name in "ab"
    ]
    of_last = torch.tensor([[math.log(0.2), math.log(0.8)], [math.log(0.7), math.log(0.3)]], dtype=torch.float64)
    return rows, torch.stack([of_last, torch.zeros_like(of_last)], 1).requires_grad_()


@pytest.mark.parametrize(
    ("method", "value", "of_chosen", "of_rejected"),
    [
        # r = log 1.6 and log 0.6, beta 1: sigmoid(log(1.6 / 0.6)) = 8 / 11, gradient -(3/11) d log 0.8 + (3/11) d log 0.3.
        ("loss=dpo loss.aggregation.beta=1.0", -math.log(8 / 11), -3 / 11 * 0.2, 3 / 11 * 0.7),
        # d = log 0.3 - log 0.5 = log 0.6; u = log(0.5 * 1 + 0.5 * 0.6) = log 0.8; weight 0.75.
        ("loss=discriminative loss.aggregation.gamma=0.5", -math.log(0.8) + math.log(0.8), -0.2, 0.75 * 0.7),
        # d = log 0.3 / 1, no reference; u = log(0.5 + 0.15) = log 0.65; weight 0.3 / 0.65.
        (
            "loss=discriminative_mean loss.aggregation.tau=1.0 loss.aggregation.gamma=0.5",
            -math.log(0.8) + math.log(0.65),
            -0.2,
            0.3 / 0.65 * 0.7,
        ),
    ],
)
def test_two_rows_by_hand(method: str, value: float, of_chosen: float, of_rejected: float) -> None:
    rows, logits_BTV = by_hand()
    built = objective(method)
    if built.state is not None:
        built.state.begin(1)
    (batch,) = batches_of(rows, sampler_of(rows, rejected=built.rejected))
    assert batch.row_ids == ("a", "b")
    loss = step_loss(on_logits(built, batch, logits_BTV), batch.step_counts)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(value, abs=1e-7)  # the reference is float32
    assert logits_BTV.grad is not None
    found = logits_BTV.grad[:, 0, 1]
    torch.testing.assert_close(found, torch.tensor([of_chosen, of_rejected], dtype=torch.float64), rtol=0, atol=1e-7)


def test_the_estimate_moves_by_gamma_and_is_of_the_example() -> None:
    """Only what was in the epoch's batches moves, and only at the commit; the next step sees it."""
    built = started("loss=discriminative")
    state = built.state
    assert state is not None
    leaves = logits(1)
    batches = batches_of(ROWS, sampler_of(ROWS))
    assert batches[0].groups is not None
    assert batches[0].groups.example_G is not None
    first = batches[0].groups.example_G.tolist()
    on_logits(built, batches[0], leaves_of(batches[0], leaves))
    assert state.saved().tolist() == OLD
    state.commit(lambda x: x, device=torch.device("cpu"))
    for number, old in enumerate(OLD):
        new = float(state.saved()[number])
        if number not in first:
            assert new == old
            continue
        name = list(dict.fromkeys(row.group for row in ROWS))[number]
        others = [BY_ID[i] for i in batches[0].row_ids if i.startswith(f"{name}r") and not ROWS[BY_ID[i]].chosen]
        d = [math.exp(float((row := Row(ROWS[i], leaves[i])).s) - row.ref) for i in others]
        assert new == pytest.approx(math.log(0.15 * math.exp(old) + 0.85 * sum(d) / len(d)), abs=1e-12)


def test_held_out_groups_leave_the_estimates_alone_and_have_the_batches_own() -> None:
    built = started("loss=discriminative")
    (batch,) = batches_of(ROWS, sampler_of(ROWS, batch_size=5, shuffle=False), held_out=True)
    terms = on_logits(built, batch, leaves_of(batch, logits(1)))
    state = built.state
    assert state is not None
    state.commit(lambda x: x, device=torch.device("cpu"))
    assert state.saved().tolist() == OLD
    total = 0.0
    for name in {row.group for row in ROWS}:
        rows = [BY_ID[i] for i in batch.row_ids if i.startswith(f"{name}r")]
        known = {i: Row(ROWS[i], logits(1)[i]) for i in rows}
        (chosen,) = (known[i] for i in rows if ROWS[i].chosen)
        d = [math.exp(float(known[i].s) - known[i].ref) for i in rows if not ROWS[i].chosen]
        total += -float(chosen.s) + math.log(sum(d) / len(d))
    assert float(terms[0].sum) == pytest.approx(total, abs=1e-10)


def test_what_is_measured_is_of_pairs() -> None:
    """Margins in the loss's own scores, the fraction of pairs the right way round, log-ratios to the reference."""
    built = objective("loss=dpo")
    (batch,) = batches_of(ROWS, sampler_of(ROWS, batch_size=5, rejected=1))
    terms = dict(zip(built.names, on_logits(built, batch, leaves_of(batch, logits(1))), strict=True))
    rows = {i: Row(ROWS[BY_ID[i]], logits(1)[BY_ID[i]]) for i in batch.row_ids}
    pairs = [
        [
            next(r for i, r in rows.items() if i.startswith(f"{name}r") and ROWS[BY_ID[i]].chosen is kind).r
            for kind in (True, False)
        ]
        for name in dict.fromkeys(i.split("r")[0] for i in rows)
    ]
    want = {
        "preference_margin": sum(0.1 * float(a - b) for a, b in pairs),
        "preference_accuracy": sum(float(a > b) for a, b in pairs),
        "log_ratio_chosen": sum(float(a) for a, _ in pairs),
        "log_ratio_rejected": sum(float(b) for _, b in pairs),
    }
    assert {name: float(terms[name].sum) for name in want} == pytest.approx(want, abs=1e-10)
    assert {terms[name].count for name in (*want, "loss")} == {5}
    assert {terms[name].coefficient for name in want} == {0.0}


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("loss=dpo weighting=probability", "weighting: DPO"),
        ("loss=f_divergence weighting=probability", "weighting: FDivergence"),
        ("loss=dpo loss.normalizer=critical", "loss.normalizer"),
        ("loss=nll loss.normalizer=problem", "loss.normalizer"),
        ("loss=dpo +regularizer@loss.regularizers.sed=sed", "loss.regularizers.sed"),
        ("loss=dpo loss.token_loss._target_=cft.losses.Power +loss.token_loss.exponent=1", "loss.token_loss"),
    ],
)
def test_what_cannot_be_combined_is_refused_by_name(method: str, key: str) -> None:
    with pytest.raises(BadValue, match=key):
        objective(method)
