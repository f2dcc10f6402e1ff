"""Sums over groups of tokens: rows without a group, rows without tokens, ties, weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cft.losses.aggregation import Aggregation, SoftmaxGroups, TokenMean, WeightedLosses, WorstGroup
from cft.losses.coefficient import Coefficient

pytestmark = pytest.mark.numerics


def constant(value: float) -> Coefficient:
    return Coefficient(initial=value, final=0.0, shape="constant")


def losses(
    loss: list[float], *, rows: list[int], groups: list[int], weights: list[float] | None = None, num_rows: int = 3
) -> WeightedLosses:
    """Weights as the `sequence` normalizer leaves them: divided by the tokens of the row."""
    row_N = torch.tensor(rows, dtype=torch.long)
    tokens_N = row_N.bincount(minlength=num_rows)[row_N]
    weight_N = torch.tensor(weights if weights is not None else [1.0] * len(loss), dtype=torch.float64) / tokens_N
    loss_N = torch.tensor(loss, dtype=torch.float64, requires_grad=True)
    return WeightedLosses(loss_N, weight_N, row_N, num_rows, torch.tensor(groups, dtype=torch.long))


def gradient(aggregation: Aggregation, made: WeightedLosses) -> tuple[float, list[float]]:
    total = aggregation(made, progress=0.0)
    total.backward()
    grad: Tensor | None = made.loss_N.grad
    assert grad is not None
    return float(total.detach()), grad.tolist()


def test_the_worse_group_of_each_row() -> None:
    """Row 0: groups 1.5 and 4; row 2: groups 5 and 2. Row 1 is empty."""
    made = losses([1.0, 2.0, 4.0, 5.0, 2.0], rows=[0, 0, 0, 2, 2], groups=[0, 0, 1, 0, 1])
    value, grad = gradient(WorstGroup(weight=constant(1.0)), made)
    assert value == pytest.approx(4.0 + 5.0)
    assert grad == [0.0, 0.0, 1.0, 1.0, 0.0]


def test_the_worst_group_mixes_with_the_mean_of_all() -> None:
    made = losses([1.0, 2.0, 4.0], rows=[0, 0, 0], groups=[0, 0, 1])
    value, _ = gradient(WorstGroup(weight=constant(0.9)), made)
    assert value == pytest.approx(0.1 * 7 / 3 + 0.9 * 4.0)


def test_a_group_that_is_negative_and_alone_is_still_the_worst() -> None:
    """An empty group must not win with its zero: losses such as PSFT's are negative."""
    made = losses([-1.0, -2.0], rows=[0, 0], groups=[1, 1])
    assert gradient(WorstGroup(weight=constant(1.0)), made)[0] == pytest.approx(-1.5)
    made = losses([-1.0, -2.0], rows=[0, 0], groups=[1, 1])
    assert gradient(SoftmaxGroups(temperature=2.0, detached=True), made)[0] == pytest.approx(-1.5)


def test_the_share_decays() -> None:
    made = losses([1.0, 2.0, 4.0], rows=[0, 0, 0], groups=[0, 0, 1])
    decaying = WorstGroup(weight=Coefficient(initial=0.8, final=0.0, shape="linear"))
    half = float(decaying(made, progress=0.5).detach())
    assert half == pytest.approx(0.6 * 7 / 3 + 0.4 * 4.0)


def test_softmax_over_groups() -> None:
    made = losses([1.0, 2.0, 4.0], rows=[0, 0, 0], groups=[0, 0, 1])
    share = 1 / (1 + math.exp((1.5 - 4.0) / 2.0))
    value, grad = gradient(SoftmaxGroups(temperature=2.0, detached=True), made)
    assert value == pytest.approx((1 - share) * 1.5 + share * 4.0)
    assert grad == pytest.approx([(1 - share) / 2, (1 - share) / 2, share])


def test_weights_scale_the_losses_within_their_group() -> None:
    made = losses([1.0, 2.0, 4.0], rows=[0, 0, 0], groups=[0, 0, 1], weights=[2.0, 1.0, 0.5])
    assert gradient(WorstGroup(weight=constant(1.0)), made)[0] == pytest.approx(2.0)  # means 2 and 2


@pytest.mark.parametrize(
    "aggregation",
    [TokenMean(), WorstGroup(weight=constant(0.9)), SoftmaxGroups(temperature=2.0, detached=False)],
    ids=lambda a: type(a).__name__,
)
def test_no_tokens_at_all_is_zero_with_a_gradient(aggregation: Aggregation) -> None:
    assert gradient(aggregation, losses([], rows=[], groups=[])) == (0.0, [])


def test_a_share_of_the_worst_group_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"WorstGroup\.weight: expected initial and final from 0 to 1, found 9\.0"):
        WorstGroup(weight=constant(9.0))


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SoftmaxGroups\.temperature"):
        SoftmaxGroups(temperature=0.0, detached=True)
