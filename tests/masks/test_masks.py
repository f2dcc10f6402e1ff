"""Masks against truth tables worked out by hand."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cft.config.build import CONF_DIR
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


@pytest.mark.parametrize(
    ("outcomes", "weight", "weight_if_cut_off_is_not_wrong"),
    [
        ([W, W], 1.0, 1.0),
        ([W, R], 0.5, 0.5),
        ([R, R], 0.0, 0.0),
        ([C, W], 1.0, 0.5),
        ([C, R], 0.5, 0.0),
        ([D, W], 0.5, 0.5),  # undecided never counts as failing
        ([D, D], 0.0, 0.0),
    ],
)
def test_graded_truth_table(outcomes: list[int], weight: float, weight_if_cut_off_is_not_wrong: float) -> None:
    one = row([5], outcomes=[outcomes])
    assert Critical(rule="fraction")(one).tolist() == [weight]
    assert Critical(rule="fraction", cut_off="not_wrong")(one).tolist() == [weight_if_cut_off_is_not_wrong]


@given(outcomes=st.lists(st.lists(st.sampled_from([R, W, C, D]), min_size=3, max_size=3), min_size=1, max_size=8))
def test_graded_lies_between_all_and_any(outcomes: list[list[int]]) -> None:
    one = row(range(len(outcomes)), outcomes=outcomes)
    graded = Critical(num_alternatives=3, rule="fraction")(one)
    np.testing.assert_array_equal(graded == 1, Critical(num_alternatives=3, rule="all")(one) == 1)
    np.testing.assert_array_equal(graded > 0, Critical(num_alternatives=3, rule="any")(one) == 1)
    np.testing.assert_allclose(graded * 3, np.round(graded * 3), atol=1e-6)


@pytest.mark.parametrize("outcomes", [[R, U], [U, W]])
def test_graded_needs_a_complete_annotation(outcomes: list[int]) -> None:
    with pytest.raises(MaskError, match="complete=true"):
        Critical(rule="fraction")(row([5], outcomes=[outcomes]))


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


def test_a_share_of_the_responses_counts_whole() -> None:
    rows = [row(range(20), number=n) for n in range(2000)]
    mask = Prefix(num_tokens=3, full_fraction=0.1)
    whole = {one.response_id for one in rows if mask(one).sum() == 20}
    assert {mask(one).sum() for one in rows} == {3.0, 20.0}
    # 200 expected of 2,000 draws; five standard deviations are 67.
    assert abs(len(whole) - 200) < 67
    assert {one.response_id for one in rows[::-1] if Prefix(num_tokens=3, full_fraction=0.1)(one).sum() == 20} == whole
    more = {one.response_id for one in rows if Prefix(num_tokens=3, full_fraction=0.3)(one).sum() == 20}
    assert whole < more


KEY = OmegaConf.load(CONF_DIR / "mask" / "key_span.yaml").pattern


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a 12 b\n#### 15", "15"),
        ("<Thinking> a 1 </Thinking> <Answer> it is 15 </Answer>", "<Answer> it is 15 </Answer>"),
        ("<think> #### 3 </think> so 15 pieces\nin all", "so 15 pieces\nin all"),
        (r"so \boxed{\frac{1}{2}} .", r"\frac{1}{2}"),
        (r"\boxed{1} no, \boxed{2} .", "2"),
        ("nothing to see", ""),
    ],
)
def test_the_key_and_the_end_carry_sftkeys_second_stage(text: str, key: str) -> None:
    spans = [[i, i + 1] for i in range(len(text))] + [[len(text), len(text)]]
    one = row(range(len(spans)), response=text, char_span=spans)
    weights = AnswerSpan(pattern=KEY, with_end=True)(one)
    picked = "".join(c for c, w in zip(text, weights, strict=False) if w)
    assert picked == key
    assert weights[-1] == bool(key)
    assert AnswerSpan(pattern=KEY)(one).sum() == len(key)
    assert AnswerSpan(pattern=KEY, with_end=True)(dataclasses.replace(one, finish="length")).sum() == len(key)


def test_the_last_match_counts() -> None:
    text = r"\boxed{1} then \boxed{2}"
    one = row([1, 2], response=text, char_span=[[0, 9], [9, len(text)]])
    pattern = r"(?:####\s*([^\n]+)|\\boxed\{([^{}]*)\})"
    assert AnswerSpan(pattern=pattern)(one).tolist() == [0, 1]


@pytest.mark.parametrize("bad", [np.array([1.0]), np.array([1.0, np.nan]), np.array([1.0, -1.0])])
def test_bad_weights_name_the_row(bad: np.ndarray) -> None:
    with pytest.raises(MaskError, match="r0"):
        mask_weights(lambda _: bad, row([1, 2]))
