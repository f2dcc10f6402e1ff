"""How far may a mean be off? Bootstrap intervals over problems, and over seeds and problems together.

    problems    resampled with replacement, the same draw for every seed and for both arms of a pair
    seeds       three or five values are too few to resample: a percentile interval over them covers 80 to 90 times in 100
                where it says 95 (`experiments/simulate_coverage.py`). Their part is drawn from what an analysis of
                variance leaves open instead: each draw takes a variance between seeds, in excess of the noise within
                them, that the table is compatible with, and then a normal deviate of that size

The second line is a parametric bootstrap with the generalized pivotal quantity of a two-way random model (Weerahandi 1993;
Krishnamoorthy and Mathew 2004); with one seed only the first is left, and the interval says nothing of new seeds.

    rates       0 of 100 right does not mean never: one more problem at each end of the range is added to those that
                were measured (as in Agresti and Coull 1998), with a weight drawn from Exp(1). At 118 of 200 that moves
                the limits by 0.001, at 0 of 100 the upper one from 0 to 0.035. A difference of two arms gets one
                where no problem was seen to differ in that direction, and is else left alone
    limit       the seeds' part is for effects that are about normal. Skewed ones are covered less often: with three and
                five seeds 90 times in 100 for exponential effects of one logit, 90 and 86 times where one seed in five
                ends 1.2 logits below the others (`experiments/simulate_coverage.py` prints both)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bounds = tuple[float, float]
RATE: Bounds = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the limits of its bootstrap interval, in the unit of the values."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """What `results.json` holds for one metric."""
        return asdict(self)


def bootstrap_interval(
    values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0, rate: bool | None = None
) -> Interval:
    """Mean of one value a problem with its percentile bootstrap interval over problems. values: [P].

    rate: see `two_way_bootstrap`.
    """
    values_P = np.asarray(values, dtype=np.float64)
    if values_P.ndim != 1:
        raise ValueError(f"expected one value a problem, found an array of shape {values_P.shape}")
    return two_way_bootstrap(values_P[None, :], level=level, resamples=resamples, seed=seed, rate=rate)


def two_way_bootstrap(
    values: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    within: Bounds | None = None,
    rate: bool | None = None,
) -> Interval:
    """Mean of a table of seeds x problems, with an interval that speaks of new seeds and new problems. values: [S, P].

    within: the range of the metric, to which the limits are cut; that of a rate is known. With one seed it is the
    bootstrap over problems. rate: whether the values are one; None: told by them (`is_rate`), and lengths that are all 0
    must not be told so (`is_unbounded`).
    """
    values_SP = table(values)
    rate = is_rate(values_SP) if rate is None else rate
    rng = np.random.default_rng(seed)
    means = values_SP.mean() + deviations(values_SP, resamples=resamples, rng=rng, rate=rate)
    return interval_of(float(values_SP.mean()), means, level=level, within=within or (RATE if rate else None))


def paired_two_way_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    pair_seeds: bool = True,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """mean(a) - mean(b) of two arms on the same problems, resampled together. a: [S, P], b: [S', P].

    pair_seeds: see `paired_draws`.
    """
    value, means = paired_draws(a, b, pair_seeds=pair_seeds, resamples=resamples, seed=seed)
    return interval_of(value, means, level=level, within=difference_range(a, b))


def paired_draws(
    a: ArrayLike, b: ArrayLike, *, pair_seeds: bool, resamples: int, seed: int
) -> tuple[float, NDArray[np.float64]]:
    """(mean(a) - mean(b), what it could have been: [resamples]).

    pair_seeds: row s of both is the same seed (same data order), so what it does to both cancels; False takes the seeds
    of each arm as drawn on their own, for arms with different seeds.
    """
    a_SP, b_SP = table(a), table(b)
    if a_SP.shape[1] != b_SP.shape[1]:
        raise ValueError(f"paired arms need the same problems, found {a_SP.shape[1]} and {b_SP.shape[1]}")
    rng = np.random.default_rng(seed)
    value = float(a_SP.mean() - b_SP.mean())
    apart_P = a_SP.mean(0) - b_SP.mean(0)
    unseen = np.zeros(resamples)
    if within := difference_range(a_SP, b_SP):
        ends = [end for end in within if not (apart_P * end > 0).any()]
        unseen = pull(value + unseen, problems=len(apart_P), ends=ends, rng=rng)
    over_problems = problem_deviations(apart_P, resamples=resamples, rng=rng, rate=False)
    if pair_seeds:
        if a_SP.shape != b_SP.shape:
            raise ValueError(
                f"paired seeds need equally many, found {a_SP.shape[0]} and {b_SP.shape[0]}; use pair_seeds=False"
            )
        return value, value + unseen + over_problems + seed_deviations(a_SP - b_SP, resamples=resamples, rng=rng)
    over_seeds = sum(seed_deviations(arm_SP, resamples=resamples, rng=rng) for arm_SP in (a_SP, b_SP))
    return value, value + unseen + over_problems + over_seeds


def deviations(
    values_SP: NDArray[np.float64], *, resamples: int, rng: np.random.Generator, rate: bool
) -> NDArray[np.float64]:
    """How the mean of the table could differ from that of all seeds and problems: [resamples]."""
    # Several seeds of one column are as a rule each seed's mean over problems that are not known here.
    rate = rate and (len(values_SP) == 1 or values_SP.shape[1] > 1)
    over_problems = problem_deviations(values_SP.mean(0), resamples=resamples, rng=rng, rate=rate)
    return over_problems + seed_deviations(values_SP, resamples=resamples, rng=rng)


def problem_deviations(
    values_P: NDArray[np.float64], *, resamples: int, rng: np.random.Generator, rate: bool
) -> NDArray[np.float64]:
    """Mean of problems drawn with replacement, minus the mean of all: [resamples].

    rate: one more problem is taken to be at 0, and one at 1.
    """
    # Problems with equal values are interchangeable: their counts are drawn, which for 0/1 values is all but free.
    distinct, counts = np.unique(values_P, return_counts=True)
    drawn = rng.multinomial(len(values_P), counts / len(values_P), size=resamples)
    means = drawn @ distinct / len(values_P)
    if rate:
        means += pull(means, problems=len(values_P), ends=RATE, rng=rng)
    return means - values_P.mean()


def pull(
    means: NDArray[np.float64], *, problems: int, ends: Sequence[float], rng: np.random.Generator
) -> NDArray[np.float64]:
    """How far the means move if one more problem is added at each of `ends`, its weight drawn from Exp(1): [resamples].

    The weights come from a generator of their own, so that what is drawn after them stays as it is.
    """
    (own,) = rng.spawn(1)
    weights = own.exponential(size=(len(ends), len(means)))
    return (weights * (np.array(ends)[:, None] - means)).sum(0) / (problems + weights.sum(0))


def is_unbounded(metric: str) -> bool:
    """Whether a metric counts tokens or nats, of which no value makes a rate: eval/response_tokens, val/loss_critical."""
    name = metric.rpartition("/")[2]
    return name == "response_tokens" or name.split("_")[0] in ("entropy", "loss")


def is_rate(values: ArrayLike) -> bool:
    """Whether values are 0 or 1, or shares that for half of the problems are (pass@k): what piles up at the ends of a range
    cannot be resampled there."""
    found = np.asarray(values)
    return bool((found >= 0).all() and (found <= 1).all() and np.isin(found, RATE).mean() >= 0.5)


def difference_range(a: ArrayLike, b: ArrayLike) -> Bounds | None:
    """The range of a difference of two rates, None where one is none."""
    return (-1.0, 1.0) if is_rate(a) and is_rate(b) else None


def seed_deviations(values_SP: NDArray[np.float64], *, resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The part of new seeds, beyond the noise that every value has on its own: [resamples]; zeros with one seed."""
    seeds, problems = values_SP.shape
    if seeds == 1:
        return np.zeros(resamples)
    by_seed = values_SP.mean(1)
    between = problems * by_seed.var(ddof=1)  # mean squares of the analysis of variance
    rest = values_SP - by_seed[:, None] - values_SP.mean(0) + values_SP.mean()
    free = (seeds - 1) * (problems - 1)
    possible = between * (seeds - 1) / rng.chisquare(seeds - 1, resamples)
    if free:
        possible -= (rest**2).sum() / rng.chisquare(free, resamples)
    return rng.standard_normal(resamples) * np.sqrt(np.maximum(possible, 0.0) / values_SP.size)


def table(values: ArrayLike) -> NDArray[np.float64]:
    """Seeds x problems, refused where it is empty or not finite."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 2 or 0 in found.shape:
        raise ValueError(f"a bootstrap needs a table of at least one seed x one problem, found shape {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"a bootstrap needs finite values, found {int((~np.isfinite(found)).sum())} that are not")
    return found


def interval_of(value: float, means: NDArray[np.float64], *, level: float, within: Bounds | None = None) -> Interval:
    """The quantiles of what the mean could have been."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"the level of an interval lies between 0 and 1, found {level}")
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    if within is not None:
        low, high = max(low, within[0]), min(high, within[1])
    # Of none right the limit below is none.
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))
