"""Paired tests against scipy and brute force; Holm against the closed testing procedure that it abbreviates."""

from __future__ import annotations

from itertools import combinations, product
from random import Random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from cft.evaluation.intervals import paired_two_way_bootstrap
from cft.evaluation.paired_tests import holm, mcnemar, paired_difference, sign_flip


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_binomial_test_of_the_discordant_problems(pairs: list[tuple[bool, bool]]) -> None:
    only_a = sum(a and not b for a, b in pairs)
    only_b = sum(b and not a for a, b in pairs)
    expected = scipy.stats.binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    assert mcnemar([a for a, _ in pairs], [b for _, b in pairs]) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_survives_many_problems() -> None:
    a = np.arange(12_000) < 7000
    assert mcnemar(a, ~a) == pytest.approx(scipy.stats.binomtest(7000, 12_000, 0.5).pvalue, rel=1e-9, abs=0.0)
    assert mcnemar(np.ones(3000), np.zeros(3000)) == 0.0  # below the smallest float, not an error


def test_sign_flip_is_the_share_of_sign_patterns_at_least_as_far_from_zero() -> None:
    differences = np.array([0.5, -0.25, 0.75, 1.0, 0.0, 0.25, 0.25, -0.5, 0.125])
    sums = [abs(float(np.dot(signs, differences))) for signs in product((-1, 1), repeat=len(differences))]
    exact = np.mean([s >= abs(differences.sum()) - 1e-12 for s in sums])
    found = sign_flip(differences, resamples=40_000)
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 40_000))
    theirs = scipy.stats.permutation_test(
        (differences, np.zeros_like(differences)),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=10**4,
    )
    assert exact == pytest.approx(theirs.pvalue)
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([1.0] * 60) == pytest.approx(1 / 10_001)  # no draw is as extreme; never zero


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_holm_rejects_what_closed_testing_with_bonferroni_rejects(p_values: list[float]) -> None:
    """Adjusted p of i = the largest Bonferroni p, |S| min(p in S), over all sets S that hold i."""
    every = range(len(p_values))
    sets = [s for size in range(1, len(p_values) + 1) for s in combinations(every, size)]
    for i, adjusted in enumerate(holm(p_values)):
        expected = max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s)
        assert adjusted == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=6), st.randoms(use_true_random=False))
def test_holm_leaves_out_what_was_not_tested_wherever_it_stands(p_values: list[float], shuffle: Random) -> None:
    tested = [p for p in p_values if not np.isnan(p)]
    found = holm(p_values)
    assert [p for p in found if not np.isnan(p)] == holm(tested)
    assert [np.isnan(p) for p in found] == [np.isnan(p) for p in p_values]
    order = shuffle.sample(range(len(p_values)), len(p_values))
    assert holm([p_values[i] for i in order]) == pytest.approx([found[i] for i in order], nan_ok=True)


@pytest.mark.parametrize("problems, least", [(1, 1.0), (2, 0.5), (5, 1 / 16), (200, 2 / 10_001)])
@pytest.mark.parametrize("seeds", [1, 3])
def test_few_problems_prove_little_however_far_apart(problems: int, least: float, seeds: int) -> None:
    """No less than the chance that all their signs agree: with one seed McNemar's exact value."""
    ones, zeros = np.ones((seeds, problems)), np.zeros((seeds, problems))
    found = paired_difference(ones, zeros, pair_seeds=True).p
    assert found == pytest.approx(least if seeds > 1 or problems < 10 else mcnemar(ones[0], zeros[0]))


def test_the_test_fits_the_table() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random((1, 50)) < 0.8).astype(float), (rng.random((1, 50)) < 0.5).astype(float)
    one = paired_difference(a, b, pair_seeds=True)
    assert (one.test, one.p) == ("exact McNemar", mcnemar(a[0], b[0]))
    graded = paired_difference(a * 0.5, b, pair_seeds=True)
    assert (graded.test, graded.p) == ("paired permutation", sign_flip(a[0] * 0.5 - b[0]))
    more = paired_difference(np.tile(a, (3, 1)), np.tile(b, (3, 1)), pair_seeds=True)
    assert more.test == "two-way bootstrap"
    assert more.interval == paired_two_way_bootstrap(np.tile(a, (3, 1)), np.tile(b, (3, 1)), resamples=10_000)


@pytest.mark.parametrize("shift", [-0.3, -0.1, 0.0, 0.05, 0.2])
@pytest.mark.parametrize("pair_seeds", [True, False])
def test_a_p_value_below_five_percent_is_an_interval_without_zero(shift: float, pair_seeds: bool) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(shift, 0.5, (4, 80)), rng.normal(0, 0.5, (4, 80))
    found = paired_difference(a, b, pair_seeds=pair_seeds)
    assert (found.p < 0.05) is not (found.interval.low <= 0 <= found.interval.high)
    mirrored = paired_difference(b, a, pair_seeds=pair_seeds)
    assert mirrored.interval.value == pytest.approx(-found.interval.value)


@pytest.mark.parametrize(("times", "most"), [(80, 8), pytest.param(200, 18, marks=pytest.mark.slow)])
def test_under_no_difference_few_tests_reject(times: int, most: int) -> None:
    """Two arms of equal accuracy whose seeds differ: 5 % is allowed, an interval over problems alone gives far more."""
    rng = np.random.default_rng(8)
    rejected = 0
    for _ in range(times):
        problem, a, b = rng.normal(0, 1.5, 150), rng.normal(0, 0.3, (3, 1)), rng.normal(0, 0.3, (3, 1))
        tables = [(rng.random((3, 150)) < 1 / (1 + np.exp(-problem - seed))).astype(float) for seed in (a, b)]
        rejected += paired_difference(*tables, pair_seeds=True).p < 0.05
    assert rejected <= most  # 200 x 5 % = 10, and two and a half standard errors of it
