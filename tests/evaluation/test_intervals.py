"""Intervals against scipy, exact enumeration, Student's t and a truth that is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from cft.evaluation.intervals import bootstrap_interval, paired_two_way_bootstrap, seed_deviations, two_way_bootstrap


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize("kind", ["continuous", "zero or one"])
def test_bootstrap_interval_agrees_with_scipy(level: float, kind: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.gamma(1.0, size=60) if kind == "continuous" else (rng.random(60) < 0.3).astype(float)
    ours = bootstrap_interval(values, level=level, resamples=100_000, seed=0)
    theirs = scipy.stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=100_000,
        batch=10_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean(), abs=1e-12)
    # Both are simulations: their quantiles differ by a few percent of the standard error, and by a
    # step of 1/60 where the means are discrete.
    tolerance = 0.05 * values.std() / np.sqrt(len(values)) + (1 / 60 if kind == "zero or one" else 0)
    assert ours.low == pytest.approx(theirs.low, abs=tolerance)
    assert ours.high == pytest.approx(theirs.high, abs=tolerance)


def test_bootstrap_of_two_problems_equals_the_exact_enumeration() -> None:
    # Resamples of {0, 2}: means 0, 1, 1, 2 with probability 1/4 each.
    interval = bootstrap_interval([0.0, 2.0], level=0.4, resamples=20_000)
    assert (interval.low, interval.value, interval.high) == (1.0, 1.0, 1.0)
    wide = bootstrap_interval([0.0, 2.0], level=0.6, resamples=20_000)
    assert (wide.low, wide.high) == (0.0, 2.0)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_where_only_seeds_differ_the_interval_is_students(seeds: int) -> None:
    """Every problem of a seed has one value, so that the seeds' means are a sample of that size and nothing else."""
    by_seed = np.random.default_rng(seeds).normal(0.5, 0.1, seeds)
    found = two_way_bootstrap(np.repeat(by_seed[:, None], 40, axis=1), resamples=400_000)
    half = scipy.stats.t.ppf(0.975, seeds - 1) * scipy.stats.sem(by_seed)
    assert found.value - found.low == pytest.approx(half, rel=0.03)
    assert found.high - found.value == pytest.approx(half, rel=0.03)


def test_where_seeds_do_nothing_their_part_is_that_of_noise() -> None:
    """The same values in every seed: the bootstrap over problems, and no more."""
    values = np.random.default_rng(2).random(60)
    found, plain = two_way_bootstrap(np.tile(values, (4, 1)), seed=5), bootstrap_interval(values, seed=5)
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high))
    assert not seed_deviations(np.tile(values, (4, 1)), resamples=50, rng=np.random.default_rng(0)).any()


def test_two_way_is_wider_than_problems_alone_where_seeds_differ_and_equal_with_one_seed() -> None:
    rng = np.random.default_rng(3)
    table = rng.random((4, 50)) + np.array([[0.0], [1.0], [2.0], [3.0]])
    both, problems = two_way_bootstrap(table), bootstrap_interval(table.mean(axis=0))
    assert both.high - both.low > 3 * (problems.high - problems.low)
    assert two_way_bootstrap(table[:1], seed=5) == bootstrap_interval(table[0], seed=5)


def test_limits_stay_within_the_range_of_the_metric() -> None:
    table = np.repeat([[0.2], [0.6], [1.0]], 30, axis=1)
    free, cut = two_way_bootstrap(table), two_way_bootstrap(table, within=(0.0, 1.0))
    assert free.high > 1
    assert free.low < 0 < 1 < free.high
    assert (cut.low, cut.high) == (0.0, 1.0)


def test_the_95_percent_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for trial in range(400):
        interval = bootstrap_interval(rng.random(80) < 0.3, resamples=400, seed=trial)
        hits += interval.low <= 0.3 <= interval.high
    # Binomial standard error 1.1 %; the percentile interval is known to fall short by a point or so at n = 80.
    assert 0.91 <= hits / 400 <= 0.98


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("problems", [3, 20, 100, 500])
@pytest.mark.parametrize("right", [0, 1])
def test_none_right_and_all_right_leave_an_interval_as_wide_as_clopper_and_pearsons(
    right: int, problems: int, seeds: int
) -> None:
    found = two_way_bootstrap(np.full((seeds, problems), float(right)), resamples=20_000)
    exact = scipy.stats.binomtest(right * problems, problems).proportion_ci(method="exact")
    assert found.value == right
    assert (found.low, found.high)[right] == right
    width = exact.high - exact.low
    assert 0.65 * width <= found.high - found.low <= 1.02 * width  # nearest where problems are many
    assert problems < 100 or found.high - found.low >= 0.93 * width


@pytest.mark.parametrize("rate, problems", [(0.01, 100), (0.035, 100), (0.97, 100), (0.03, 300)])
def test_rates_near_the_edge_are_covered(rate: float, problems: int) -> None:
    """Over every number of right problems there can be, each with its binomial chance."""
    counts = np.arange(problems + 1)
    chances = scipy.stats.binom.pmf(counts, problems, rate)
    covered = 0.0
    for count in counts[chances > 1e-4]:
        interval = bootstrap_interval(counts[:problems] < count, resamples=4000, seed=int(count))
        covered += chances[count] * (interval.low <= rate <= interval.high)
    assert covered >= 0.93


def test_away_from_the_edge_a_rate_is_resampled_as_any_other_mean() -> None:
    """Twice the values are no rate, and their interval is the plain bootstrap's."""
    right = (np.random.default_rng(12).random((3, 200)) < 0.59).astype(float)
    rate, plain = two_way_bootstrap(right, resamples=50_000), two_way_bootstrap(2 * right, resamples=50_000)
    assert rate.low == pytest.approx(plain.low / 2, abs=0.002)
    assert rate.high == pytest.approx(plain.high / 2, abs=0.002)


def test_arms_that_no_problem_tells_apart_may_differ_on_others() -> None:
    same = np.tile(np.arange(100) < 40, (3, 1)).astype(float)
    found = paired_two_way_bootstrap(same, same, resamples=20_000)
    assert found.value == 0
    # An exponential weight on either side, of a hundred and two.
    assert found.low == pytest.approx(-found.high, rel=0.1)
    assert found.high == pytest.approx(np.log(20) / 100, rel=0.1)
    better = same.copy()
    better[:, 50:] = 1.0
    above = paired_two_way_bootstrap(better, same)
    assert above.low > 0
    assert -1 <= above.low <= above.high <= 1


def test_a_rate_has_its_limits_between_0_and_1_without_being_told() -> None:
    found = two_way_bootstrap([[0.0], [1.0], [1.0]])
    assert (found.low, found.high) == (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5])
def test_three_seeds_cover_too(spread: float) -> None:
    """`experiments/simulate_coverage.py` in small: 300 tables, standard error 1.3 points below the 95 to be expected."""
    rng = np.random.default_rng(11)
    hits = 0
    for trial in range(300):
        table = rng.normal(0, 1, (1, 100)) + rng.normal(0, spread, (3, 1)) + rng.normal(0, 1, (3, 100))
        interval = two_way_bootstrap(table, resamples=300, seed=trial)
        hits += interval.low <= 0 <= interval.high
    assert hits / 300 >= 0.93


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


def test_unpaired_seeds_are_drawn_apart() -> None:
    # Seeds that move both arms alike cancel only where they are paired.
    shift = np.array([[0.0], [2.0]])
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
