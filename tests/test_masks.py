"""Masks against truth tables worked out by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest

from cft.masks import All, AnswerSpan, Complement, Critical, MaskError, Numeric, Prefix, RandomLike, mask_weights
from cft.types import AnnotatedResponse
from tests.fakes import row

R, W, U, C, D = 1, 0, -1, -2, -3  # right, wrong, untried, cut off, undecided


@pytest.mark.parametrize(
    ("outcomes", "critical", "critical_if_cut_off_is_not_wrong"),
    [
        ([W, W], 1, 1),
        ([R, U], 0, 0),  # settled by the first right alternative
        ([W, R], 0, 0),
        ([C, W], 1, 0),
        ([C, C], 1, 0),
        ([C, R], 0, 0),
        ([D, W], 0, 0),  # undecided never makes a token critical
        ([W, D], 0, 0),
    ],
)
def test_critical_truth_table(outcomes: list[int], critical: int, critical_if_cut_off_is_not_wrong: int) -> None:
    one = row([5], outcomes=[outcomes])
    assert Critical()(one).tolist() == [critical]
    assert Critical(cut_off="not_wrong")(one).tolist() == [critical_if_cut_off_is_not_wrong]


def test_a_cut_off_counted_as_right_would_change_the_mask() -> None:
    assert Critical()(row([5, 6], outcomes=[[C, W], [W, C]])).tolist() == [1, 1]


def test_first_k_alternatives_decide() -> None:
    one = row([5, 6], outcomes=[[W, R, U], [W, W, R]])
    assert Critical(num_alternatives=1)(one).tolist() == [1, 1]
    assert Critical(num_alternatives=2)(one).tolist() == [0, 1]
    assert Critical(num_alternatives=3)(one).tolist() == [0, 0]


def test_any_needs_every_cell_and_says_how_to_fill_them() -> None:
    with pytest.raises(MaskError, match="complete=true"):
        Critical(rule="any")(row([5], outcomes=[[R, U]]))
    assert Critical(rule="any")(row([5, 6, 7], outcomes=[[R, W], [R, R], [W, U]])).tolist() == [1, 0, 1]


def test_unsettled_positions_are_refused() -> None:
    with pytest.raises(MaskError, match="complete=true"):
        Critical()(row([5], outcomes=[[W, U]]))


def test_more_alternatives_than_stored_are_refused() -> None:
    with pytest.raises(MaskError, match="num_alternatives=3, but the annotation holds 2"):
        Critical(num_alternatives=3)(row([5]))


def mixed_row(number: int, length: int = 40) -> AnnotatedResponse:
    rng = np.random.default_rng(number)
    outcomes = [[W, W] if rng.random() < 0.3 else [R, U] for _ in range(length)]
    return row(range(length), outcomes=outcomes, number=number)


def test_random_like_matches_the_count_row_by_row_and_differs_from_it() -> None:
    rows = [mixed_row(i) for i in range(30)]
    random = RandomLike(like=Critical(), seed=0)
    for one in rows:
        assert random(one).sum() == Critical()(one).sum()
        assert set(random(one).tolist()) <= {0.0, 1.0}
    overlap = np.concatenate([random(one) * Critical()(one) for one in rows]).sum()
    critical = sum(Critical()(one).sum() for one in rows)
    # Independent draws hit about 30 % of the critical tokens; a copy of the mask would hit all.
    assert 0.15 < overlap / critical < 0.5


def test_random_like_depends_on_seed_and_row_alone() -> None:
    one, other = mixed_row(1), mixed_row(2)
    again = RandomLike(like=Critical(), seed=0)
    again(other)
    assert again(one).tolist() == RandomLike(like=Critical(), seed=0)(one).tolist()
    assert again(one).tolist() != RandomLike(like=Critical(), seed=1)(one).tolist()


def test_complement_and_all() -> None:
    one = mixed_row(3)
    np.testing.assert_array_equal(Critical()(one) + Complement(of=Critical())(one), All()(one))


TEXT = "a 12 b 3.\n#### 15"
SPANS = [[m.start(), m.end()] for m in re.finditer(r"\s*\S+", TEXT)] + [[len(TEXT), len(TEXT)]]


def test_numeric_answer_span_and_prefix() -> None:
    one = row(range(len(SPANS)), response=TEXT, char_span=SPANS)  # a, 12, b, 3., ####, 15, EOS
    assert Numeric()(one).tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert AnswerSpan(pattern=r"####\s*([^\n]+)")(one).tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert AnswerSpan(pattern="nothing")(one).tolist() == [0] * 7
    assert Prefix(num_tokens=3)(one).tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert Prefix(num_tokens=99)(one).tolist() == [1, 1, 1, 1, 1, 1, 0]  # the EOS is not learnt


def test_the_last_match_counts() -> None:
    text = r"\boxed{1} then \boxed{2}"
    one = row([1, 2], response=text, char_span=[[0, 9], [9, len(text)]])
    pattern = r"(?:####\s*([^\n]+)|\\boxed\{([^{}]*)\})"
    assert AnswerSpan(pattern=pattern)(one).tolist() == [0, 1]


@pytest.mark.parametrize("bad", [np.array([1.0]), np.array([1.0, np.nan]), np.array([1.0, -1.0])])
def test_bad_weights_name_the_row(bad: np.ndarray) -> None:
    with pytest.raises(MaskError, match="r0"):
        mask_weights(lambda _: bad, row([1, 2]))
