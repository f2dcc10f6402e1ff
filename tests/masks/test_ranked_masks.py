"""Masks that rank tokens, against brute-force definitions; none depends on the order of the rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cft.errors import BadValue
from cft.masks import Mask, MaskError
from cft.masks.ranked import Excess, HighEntropy, Reasoning, TfIdf, TokenCleaning, TopScore, top_of_row
from cft.types import AnnotatedResponse
from tests.fakes import row

VALUES = st.lists(st.integers(-3, 3), min_size=1, max_size=12)  # few values: ties are the rule
SHARES = st.sampled_from([0.01, 0.2, 0.3, 0.5, 0.6, 0.7, 1.0])


@given(values=VALUES, share=SHARES)
def test_the_top_of_a_row_is_that_of_a_sort(values: list[int], share: float) -> None:
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
    count = math.ceil(round(share * len(values), 9))
    expected = [float(i in ranked[:count]) for i in range(len(values))]
    assert top_of_row(np.array(values, np.float32), fraction=share).tolist() == expected


def test_entropy_and_stored_scores_rank_within_the_row() -> None:
    one = dataclasses.replace(
        row(range(5)),
        entropy=np.array([0.1, 0.9, 0.2, 0.9, 0.4], np.float32),
        scores={"attention_received": np.array([3, 0, 0, 1, 2], np.float32)},
    )
    assert HighEntropy(fraction=0.2)(one).tolist() == [0, 1, 0, 0, 0]
    assert HighEntropy(fraction=0.5)(one).tolist() == [0, 1, 0, 1, 1]
    assert TopScore(score="attention_received", fraction=0.4)(one).tolist() == [1, 0, 0, 0, 1]
    assert TopScore(score="attention_received", fraction=0.4).needs == ("attention_received",)
    assert TopScore(score="logprob", fraction=0.4).needs == ()


@given(responses=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=9), min_size=1, max_size=6), share=SHARES)
def test_tf_idf_is_that_of_scikit_learns_definition(responses: list[list[int]], share: float) -> None:
    """Smoothed idf as scikit-learn documents it, counted here anew for every token."""
    rows = [row(ids, number=n) for n, ids in enumerate(responses)]
    mask = TfIdf(fraction=share)
    mask.fit(rows)
    for ids, one in zip(responses, rows, strict=True):
        score = [
            (sum(i == j for j in ids) / len(ids))
            * (math.log((1 + len(responses)) / (1 + sum(i in other for other in responses))) + 1)
            for i in ids
        ]
        ranked = sorted(range(len(ids)), key=lambda t: (-score[t], t))
        count = math.ceil(round(share * len(ids), 9))
        picked = [t for t, w in enumerate(mask(one)) if w]
        # Rounding may part tokens of equal score, so scores are compared rather than places.
        np.testing.assert_allclose(
            sorted(score[t] for t in picked), sorted(score[t] for t in ranked[:count]), rtol=1e-12
        )


def scored(number: int, *, length: int = 30) -> AnnotatedResponse:
    rng = np.random.default_rng(number)
    base, cleaner = rng.normal(size=(2, length)).astype(np.float32)
    made = row(rng.integers(0, 9, length), number=number)
    return dataclasses.replace(made, logprob=base, scores={"cleaner": cleaner, "shuffled": cleaner})


def test_token_cleaning_takes_the_top_of_the_whole_data_set() -> None:
    rows = [scored(n, length=5 + n) for n in range(20)]
    mask = TokenCleaning(base="logprob", reference="cleaner", fraction=0.6)
    assert mask.needs == ("cleaner",)
    mask.fit(rows)
    # base loss - reference loss, in the paper's order
    excess = {(r.response_id, t): -r.logprob[t] + r.scores["cleaner"][t] for r in rows for t in range(len(r.logprob))}
    count = math.ceil(round(0.6 * len(excess), 9))
    expected = set(sorted(excess, key=lambda key: -excess[key])[:count])
    found = {(r.response_id, t) for r in rows for t, w in enumerate(mask(r)) if w}
    assert found == expected
    shares = [mask(r).mean() for r in rows]
    assert max(shares) - min(shares) > 0.1  # a data-set threshold, not one a row


def test_excess_takes_the_top_of_each_row() -> None:
    mask = Excess(base="logprob", reference="cleaner", fraction=0.6)
    assert mask.needs == ("cleaner",)
    for one in (scored(n, length=5 + n) for n in range(5)):
        gain = [r - b for b, r in zip(one.logprob.tolist(), one.scores["cleaner"].tolist(), strict=True)]
        count = math.ceil(round(0.6 * len(gain), 9))
        assert set(np.flatnonzero(mask(one))) == set(sorted(range(len(gain)), key=lambda t: -gain[t])[:count])


def test_equal_values_at_the_threshold_are_all_picked() -> None:
    tied = [
        dataclasses.replace(
            row([1, 2], number=n), logprob=np.zeros(2, np.float32), scores={"c": np.zeros(2, np.float32)}
        )
        for n in range(3)
    ]
    mask = TokenCleaning(base="logprob", reference="c", fraction=0.5)
    mask.fit(tied)
    assert [mask(one).tolist() for one in tied] == [[1, 1]] * 3


def test_a_threshold_without_a_data_set_is_refused() -> None:
    with pytest.raises(MaskError, match="fit"):
        TokenCleaning(base="logprob", reference="cleaner", fraction=0.6)(scored(0))


def test_boilerplate_is_what_shuffled_training_makes_likelier() -> None:
    one = dataclasses.replace(
        row(range(4)),
        logprob=np.array([-1.0, -1.0, -1.0, -1.0], np.float32),
        scores={"shuffled": np.array([-0.2, -1.0, -3.0, -0.95], np.float32)},
    )
    assert Reasoning(base="logprob", shuffled="shuffled")(one).tolist() == [0, 1, 1, 0]
    assert Reasoning(base="logprob", shuffled="shuffled", margin_nats=0.1)(one).tolist() == [0, 1, 1, 1]


MASKS: list[Mask] = [
    HighEntropy(fraction=0.2),
    TopScore(score="cleaner", fraction=0.2),
    TfIdf(fraction=0.3),
    Excess(base="logprob", reference="cleaner", fraction=0.6),
    TokenCleaning(base="logprob", reference="cleaner", fraction=0.6),
    Reasoning(base="logprob", shuffled="shuffled"),
]


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: type(m).__name__)
def test_the_order_of_the_rows_decides_nothing(mask: Mask) -> None:
    rows = [scored(n) for n in range(12)]

    def of(order: Sequence[AnnotatedResponse]) -> dict[str, list[float]]:
        mask.fit(order)
        return {one.response_id: mask(one).tolist() for one in order}

    assert of(rows) == of(rows[::-1]) == of(rows[5:] + rows[:5])
    assert 0 < sum(map(sum, of(rows).values())) < 12 * 30


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_shares_are_shares(share: float) -> None:
    with pytest.raises(BadValue, match=r"HighEntropy\.fraction: expected a number above 0 and at most 1"):
        HighEntropy(fraction=share)


def test_two_models_are_expected() -> None:
    with pytest.raises(MaskError, match="two models"):
        TokenCleaning(base="a", reference="a", fraction=0.6)
    with pytest.raises(MaskError, match="two models"):
        Excess(base="a", reference="a", fraction=0.6)
    with pytest.raises(MaskError, match="two models"):
        Reasoning(base="a", shuffled="a")


def test_entropy_that_the_engine_left_open_is_refused_with_the_command_that_fills_it() -> None:
    known = row([5, 6, 7])
    open_ = dataclasses.replace(known, entropy=np.array([0.1, np.nan, 0.2], np.float32))
    with pytest.raises(MaskError, match=r"response r0: .*cft score score=entropy .*mask=attention mask\.score=entropy"):
        HighEntropy(fraction=0.5)(open_)
    scored = dataclasses.replace(open_, scores={"entropy": known.entropy})
    same = TopScore(score="entropy", fraction=0.5)(scored)
    np.testing.assert_array_equal(same, HighEntropy(fraction=0.5)(known))
