"""Metrics against brute force over all subsets, and intervals against scipy and a loop."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from cft.metrics import (
    bootstrap_interval,
    distinct_n,
    maj_at_k,
    paired_two_way_bootstrap,
    pass_at_k,
    two_way_bootstrap,
)


@pytest.mark.parametrize("n, c, k", [(n, c, k) for n in range(1, 8) for c in range(n + 1) for k in range(1, n + 1)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n: int, c: int, k: int) -> None:
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(subset) for subset in subsets]), abs=1e-12)


def test_pass_at_k_survives_large_numbers_and_refuses_impossible_ones() -> None:
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5, abs=1e-12)
    assert pass_at_k(10_000, 0, 10_000) == 0.0
    for n, c, k in [(4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)]:
        with pytest.raises(ValueError, match="pass@k"):
            pass_at_k(n, c, k)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["1", "2", "3", ""]), min_size=1, max_size=6), st.data())
def test_maj_at_k_is_the_mean_over_every_way_of_breaking_ties(answers: list[str], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    votes = [answer for answer in answers[:k] if answer]
    # Brute force: sort the candidates in every order, take the first that has the most votes.
    most = max((votes.count(answer) for answer in votes), default=0)
    winners = [answer for answer in sorted(set(votes)) if votes.count(answer) == most]
    expected = np.mean([winner == "1" for winner in winners]) if winners else 0.0
    assert maj_at_k(answers, [answer == "1" for answer in answers], k=k) == pytest.approx(expected)


def test_maj_at_k_counts_equal_numbers_together() -> None:
    assert maj_at_k(["7", "7.0", "5", "5", "\\frac{14}{2}"], [False, False, True, True, False], k=5) == 0.0
    assert maj_at_k(["5", "5.0", "10/2", "7", "7"], [True, True, True, False, False], k=5) == 1.0
    assert maj_at_k(["5", "7"], [True, False], k=2) == 0.5
    assert maj_at_k(["", "", "5"], [False, False, True], k=3) == 1.0
    with pytest.raises(ValueError, match="at least k"):
        maj_at_k(["5"], [True], k=2)
    with pytest.raises(ValueError, match="one verdict"):
        maj_at_k(["5"], [], k=1)


def test_distinct_n() -> None:
    assert distinct_n([[1, 2, 1, 2]], n=2) == pytest.approx(2 / 3)  # 12 21 12
    assert distinct_n([[1, 2], [1, 2]], n=2) == 0.5
    assert distinct_n([[1, 2], [2, 3]], n=2) == 1.0  # no n-gram across the seam
    assert distinct_n([["a", "b"], ["a"]], n=1) == pytest.approx(2 / 3)
    assert np.isnan(distinct_n([[1], []], n=2))
    with pytest.raises(ValueError, match="n >= 1"):
        distinct_n([[1]], n=0)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_bootstrap_interval_agrees_with_scipy(level: float) -> None:
    values = np.random.default_rng(1).gamma(1.0, size=60)
    ours = bootstrap_interval(values, level=level, resamples=20_000, seed=0)
    theirs = scipy.stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean(), abs=1e-12)
    # Both are simulations: their quantiles differ by a few percent of the standard error at 20,000 resamples.
    tolerance = 0.05 * values.std() / np.sqrt(len(values))
    assert ours.low == pytest.approx(theirs.low, abs=tolerance)
    assert ours.high == pytest.approx(theirs.high, abs=tolerance)


def test_bootstrap_of_two_problems_equals_the_exact_enumeration() -> None:
    # Resamples of {0, 1}: means 0, 1/2, 1/2, 1 with probability 1/4 each.
    interval = bootstrap_interval([0.0, 1.0], level=0.4, resamples=20_000)
    assert (interval.low, interval.value, interval.high) == (0.5, 0.5, 0.5)
    wide = bootstrap_interval([0.0, 1.0], level=0.6, resamples=20_000)
    assert (wide.low, wide.high) == (0.0, 1.0)


def test_two_way_bootstrap_equals_the_exact_enumeration() -> None:
    table = np.array([[0.0, 1.0, 1.0], [2.0, 0.0, 5.0]])
    means = [
        table[list(seeds)][:, list(problems)].mean()
        for seeds in product(range(2), repeat=2)
        for problems in product(range(3), repeat=3)
    ]
    for level in (0.3, 0.5, 0.8):
        interval = two_way_bootstrap(table, level=level, resamples=100_000)
        assert interval.value == pytest.approx(1.5)
        # Discrete distribution: the simulated quantile lies between exact ones of a slightly smaller and larger level.
        for quantile, limit in ((0.5 - level / 2, interval.low), (0.5 + level / 2, interval.high)):
            below, above = np.quantile(means, [quantile - 0.01, quantile + 0.01], method="inverted_cdf")
            assert below - 1e-9 <= limit <= above + 1e-9


def test_two_way_is_wider_than_problems_alone_where_seeds_differ_and_equal_with_one_seed() -> None:
    rng = np.random.default_rng(3)
    table = rng.random((4, 50)) + np.array([[0.0], [1.0], [2.0], [3.0]])
    both, problems = two_way_bootstrap(table), bootstrap_interval(table.mean(axis=0))
    assert both.high - both.low > 3 * (problems.high - problems.low)
    assert two_way_bootstrap(table[:1], seed=5) == bootstrap_interval(table[0], seed=5)


def test_the_95_percent_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for trial in range(400):
        interval = bootstrap_interval(rng.random(80) < 0.3, resamples=400, seed=trial)
        hits += interval.low <= 0.3 <= interval.high
    # Binomial standard error 1.1 %; the percentile interval is known to fall short by a point or so at n = 80.
    assert 0.91 <= hits / 400 <= 0.98


def test_paired_difference_removes_what_both_arms_share() -> None:
    rng = np.random.default_rng(6)
    difficulty = rng.random(100)
    a, b = np.tile(difficulty + 0.01, (3, 1)), np.tile(difficulty, (3, 1))
    paired = paired_two_way_bootstrap(a, b)
    assert paired.low == pytest.approx(0.01)
    assert paired.high == pytest.approx(0.01)
    apart = two_way_bootstrap(a)
    assert apart.high - apart.low > 0.05
    assert paired_two_way_bootstrap(a, b[:2], pair_seeds=False).value == pytest.approx(0.01)
    with pytest.raises(ValueError, match="pair_seeds=False"):
        paired_two_way_bootstrap(a, b[:2])
    with pytest.raises(ValueError, match="same problems"):
        paired_two_way_bootstrap(a, b[:, :50], pair_seeds=False)


def test_unpaired_seeds_are_resampled_apart() -> None:
    # Seeds that move both arms alike cancel only where they are paired.
    shift = np.array([[0.0], [1.0]])
    a, b = np.zeros((2, 20)) + shift, np.zeros((2, 20)) + shift
    paired, unpaired = paired_two_way_bootstrap(a, b), paired_two_way_bootstrap(a, b, pair_seeds=False)
    assert paired.low == paired.high == 0.0
    assert unpaired.low < -0.4
    assert unpaired.high > 0.4


@pytest.mark.parametrize("values", [[], [[]], [[1.0, float("nan")]], [[float("inf")]], [1.0, 2.0]])
def test_tables_that_have_no_interval_are_refused(values: list[object]) -> None:
    with pytest.raises(ValueError, match="a bootstrap needs"):
        two_way_bootstrap(values)  # pyright: ignore[reportArgumentType]


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(7).random(30)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(values, level=1.0)
