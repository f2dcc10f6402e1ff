"""Does one arm differ from another on the same problems? p-values, and their correction for many comparisons.

    several seeds       the draws of the paired two-way bootstrap (`intervals.py`): the p-value says what the interval says
    one seed, 0 and 1   exact McNemar test: of the problems that only one arm solves, is either arm's share above chance?
    one seed, else      paired permutation test: the sign of each problem's difference is drawn at random
    many arms           Holm's step-down correction: the chance of any false finding stays below the level (Holm 1979)

With one seed the p-value speaks of these two models on other problems, not of the methods that made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, isnan, nan
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from cft.evaluation.intervals import Interval, difference_range, interval_of, paired_draws, table

Test = Literal["two-way bootstrap", "exact McNemar", "paired permutation"]
RESAMPLES = 10_000  # the smallest p-value of a bootstrap or permutation is 2 / (RESAMPLES + 1)


@dataclass(frozen=True, slots=True)
class Difference:
    """mean(a) - mean(b) with its 95 % interval and two-sided p-value. test: where the p-value comes from."""

    interval: Interval
    p: float
    test: Test


def paired_difference(a: ArrayLike, b: ArrayLike, *, pair_seeds: bool, seed: int = 0) -> Difference:
    """Two arms on the same problems. a: [S, P], b: [S', P]; pair_seeds as in `cft.evaluation.intervals.paired_draws`.

    Of P problems no test can tell more than that all signs agree, which chance gives 2^(1 - P) times: no p-value is below
    that, and of one problem it is 1.
    """
    value, means = paired_draws(a, b, pair_seeds=pair_seeds, resamples=RESAMPLES, seed=seed)
    interval = interval_of(value, means, level=0.95, within=difference_range(a, b))
    a_SP, b_SP = table(a), table(b)
    if max(len(a_SP), len(b_SP)) > 1:
        beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
        p = max(2 * (beyond + 1) / (RESAMPLES + 1), 2.0 ** (1 - a_SP.shape[1]))
        return Difference(interval, min(1.0, p), "two-way bootstrap")
    if np.isin(np.concatenate([a_SP, b_SP]), (0.0, 1.0)).all():
        return Difference(interval, mcnemar(a_SP[0], b_SP[0]), "exact McNemar")
    return Difference(interval, sign_flip(a_SP[0] - b_SP[0], seed=seed), "paired permutation")


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided exact p-value for 0/1 values of the same problems; 1 where no problem tells the arms apart."""
    a_P, b_P = np.asarray(a) > 0, np.asarray(b) > 0
    only_a, only_b = int((a_P & ~b_P).sum()), int((b_P & ~a_P).sum())
    discordant = only_a + only_b
    # Whole numbers until the end: neither rounding nor underflow, however many problems there are.
    tail = binomial = 1
    for i in range(min(only_a, only_b)):
        binomial = binomial * (discordant - i) // (i + 1)
        tail += binomial
    return min(1.0, 2 * tail / 2**discordant)


def sign_flip(differences: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of a mean difference, by drawing the sign of each problem's difference: [P]."""
    differences_P = np.asarray(differences, dtype=np.float64)
    told = differences_P[differences_P != 0]
    if not len(told):
        return 1.0
    # Equal sizes are interchangeable: how many of them come out positive is binomial.
    sizes, counts = np.unique(np.abs(told), return_counts=True)
    positive = np.random.default_rng(seed).binomial(counts, 0.5, size=(resamples, len(counts)))
    sums = np.abs((2 * positive - counts) @ sizes)
    observed = abs(fsum(told.tolist()))
    return (1 + int((sums >= observed * (1 - 1e-12)).sum())) / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given: below a level alpha is what Holm's procedure rejects at alpha.

    A NaN is no test: it stays NaN and does not count among the family.
    """
    order = sorted((i for i, p in enumerate(p_values) if not isnan(p)), key=lambda i: p_values[i])
    adjusted, highest = [nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
