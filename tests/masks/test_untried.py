"""Positions of which nothing was tried, and responses that end wrong: no mask takes them for something else in silence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cft.masks import Complement, Critical, Deciding, MaskError, RandomLike, Turning
from cft.masks.critical import critical_fraction
from cft.types import AnnotatedResponse
from tests.fakes import row

R, W, U, C, D = 1, 0, -1, -2, -3  # right, wrong, untried, cut off, undecided


def wrong(outcomes: list[list[int]]) -> AnnotatedResponse:
    return dataclasses.replace(row(range(len(outcomes)), outcomes=outcomes), verdict="wrong")


PARTLY = [[W, W], [U, U], [R, U], [U, U], [W, R]]


def test_positions_that_were_not_tried_are_refused_or_left_out_by_choice() -> None:
    one = row(range(5), outcomes=PARTLY)
    with pytest.raises(MaskError, match=r"2 of 5 positions were not tried.*mask.untried=leave_out.*complete=true"):
        Critical()(one)
    mask = Critical(untried="leave_out")
    assert mask(one).tolist() == [1, 0, 0, 0, 0]
    assert mask.known(one).tolist() == [True, False, True, False, True]
    assert Complement(of=mask)(one).tolist() == [0, 0, 1, 0, 1]


def test_a_gap_of_short_circuit_is_refused_though_untried_positions_are_left_out() -> None:
    with pytest.raises(MaskError, match="1 positions are undecided"):
        Critical(rule="fraction", untried="leave_out")(row(range(2), outcomes=[[R, U], [U, U]]))


def test_the_random_control_draws_from_what_was_tried() -> None:
    outcomes = [[W, W], [R, U], [R, U]] + [[U, U]] * 40
    random = [
        RandomLike(like=Critical(untried="leave_out"), seed=s)(row(range(43), outcomes=outcomes)) for s in range(30)
    ]
    assert {int(np.flatnonzero(weights).item()) for weights in random} == {0, 1, 2}


@pytest.mark.parametrize(
    ("outcomes", "any_", "fraction"),
    [([R, U], 1, None), ([W, R], 1, 0.5), ([R, R], 1, 1.0), ([W, W], 0, 0.0), ([C, D], 0, 0.0)],
)
def test_turning_truth_table(outcomes: list[int], any_: int, fraction: float | None) -> None:
    one = wrong([outcomes])
    assert Turning()(one).tolist() == [any_]
    if fraction is None:
        with pytest.raises(MaskError, match="complete=true"):
            Turning(rule="fraction")(one)
    else:
        assert Turning(rule="fraction")(one).tolist() == [fraction]
        assert Turning(rule="all")(one).tolist() == [float(fraction == 1)]


def test_each_of_the_two_refuses_the_other_s_responses_by_name() -> None:
    with pytest.raises(MaskError, match=r"ends wrong.*expected mask=turning"):
        Critical()(wrong([[W, W]]))
    with pytest.raises(MaskError, match=r"ends right.*expected mask=critical"):
        Turning()(row([5]))


def test_figures_are_of_what_was_tried() -> None:
    assert critical_fraction([row(range(5), outcomes=PARTLY)], num_alternatives=2) == pytest.approx(1 / 3)
    assert critical_fraction([wrong([[W, R], [U, U], [W, W]])], num_alternatives=2) == pytest.approx(1 / 2)
    assert np.isnan(critical_fraction([row([5], outcomes=[[U, U]])], num_alternatives=2))
    assert Deciding()(wrong([[R, U], [U, U]])).tolist() == [1, 0]
