"""Evaluation metrics and their uncertainty: pure functions over numpy arrays, one formula each.

    pass@k        1 - C(n - c, k) / C(n, k), the unbiased estimator            arXiv 2107.03374, eq. 1
    maj@k         share of problems whose most frequent answer is right        arXiv 2203.11171 (self-consistency)
    distinct-n    different n-grams / all n-grams                              arXiv 1510.03055
    intervals     percentile bootstrap over problems, or over seeds and problems (crossed: each resampled on its own)

Nothing here rounds, skips or fills in: a value that is not defined is NaN, and a NaN handed to a bootstrap is an error.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cft.answers import canonical


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the limits of its bootstrap interval, in the unit of the values."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """What `results.json` holds for one metric."""
        return asdict(self)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k samples drawn without replacement from n, of which c are right, hold a right one.

    1 - C(n-c, k) / C(n, k), as a product that neither overflows nor cancels (arXiv 2107.03374, eq. 1). In [0, 1].
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, found n={n}, c={c}, k={k}; sample k or more")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def maj_at_k(answers: Sequence[str], correct: Sequence[bool], *, k: int) -> float:
    """Is the most frequent of the first k extracted answers right? In [0, 1].

    A tie gives the expected value of breaking it uniformly at random: right winners / winners. Answers that are equal
    as numbers vote together, and so do all right ones (the verifier says that each equals the gold answer). A sample
    without an answer ("") does not vote; without any vote the result is 0.
    """
    if len(answers) != len(correct):
        raise ValueError(f"maj@k needs one verdict an answer, found {len(answers)} answers and {len(correct)} verdicts")
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} needs at least k answers a problem, found {len(answers)}")
    votes: dict[Hashable, int] = {}
    for answer, right in zip(answers[:k], correct[:k], strict=True):
        if right or answer:
            # `True` stands for "the right answer"; the wrong ones are told apart by what they say.
            ballot: Hashable = True if right else canonical(answer)
            votes[ballot] = votes.get(ballot, 0) + 1
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [ballot for ballot, count in votes.items() if count == most]
    return (True in winners) / len(winners)


def distinct_n(sequences: Sequence[Sequence[Hashable]], *, n: int) -> float:
    """Different n-grams over all n-grams of the sequences together (token ids or words). In (0, 1].

    NaN where no sequence has n tokens: there is nothing to count. n-grams do not cross from one sequence to the next.
    """
    if n < 1:
        raise ValueError(f"distinct-n needs n >= 1, found {n}")
    grams = [tuple(sequence[i : i + n]) for sequence in sequences for i in range(len(sequence) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def bootstrap_interval(values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of one value a problem with its percentile bootstrap interval over problems. values: [P]."""
    values_P = np.asarray(values, dtype=np.float64)
    if values_P.ndim != 1:
        raise ValueError(f"expected one value a problem, found an array of shape {values_P.shape}")
    return two_way_bootstrap(values_P[None, :], level=level, resamples=resamples, seed=seed)


def two_way_bootstrap(values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of a table of seeds x problems; both are resampled, each on its own. values: [S, P].

    The interval speaks of new seeds and new problems alike. With one seed it is the bootstrap over problems.
    """
    values_SP = _table(values)
    rng = np.random.default_rng(seed)
    means = _resampled_means(values_SP, *_draws(values_SP.shape, resamples=resamples, rng=rng))
    return _interval(float(values_SP.mean()), means, level=level)


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

    pair_seeds: row s of both is the same seed (same data order), resampled together; False resamples the seeds of each
    arm on their own, for arms with different seeds.
    """
    a_SP, b_SP = _table(a), _table(b)
    if a_SP.shape[1] != b_SP.shape[1]:
        raise ValueError(f"paired arms need the same problems, found {a_SP.shape[1]} and {b_SP.shape[1]}")
    rng = np.random.default_rng(seed)
    if pair_seeds:
        if a_SP.shape != b_SP.shape:
            raise ValueError(
                f"paired seeds need equally many, found {a_SP.shape[0]} and {b_SP.shape[0]}; use pair_seeds=False"
            )
        return two_way_bootstrap(a_SP - b_SP, level=level, resamples=resamples, seed=seed)
    seeds_a, problems = _draws(a_SP.shape, resamples=resamples, rng=rng)
    seeds_b = _shares(b_SP.shape[0], resamples=resamples, rng=rng)
    means = _resampled_means(a_SP, seeds_a, problems) - _resampled_means(b_SP, seeds_b, problems)
    return _interval(float(a_SP.mean() - b_SP.mean()), means, level=level)


def _table(values: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"a bootstrap needs a table of at least one seed x one problem, found shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError(f"a bootstrap needs finite values, found {int((~np.isfinite(table)).sum())} that are not")
    return table


def _shares(size: int, *, resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How large a share of each resample each item makes: [resamples, size], rows sum to 1."""
    return rng.multinomial(size, np.full(size, 1.0 / size), size=resamples) / size


def _draws(
    shape: tuple[int, ...], *, resamples: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return _shares(shape[0], resamples=resamples, rng=rng), _shares(shape[1], resamples=resamples, rng=rng)


def _resampled_means(
    values_SP: NDArray[np.float64], seeds: NDArray[np.float64], problems: NDArray[np.float64]
) -> NDArray[np.float64]:
    return ((seeds @ values_SP) * problems).sum(axis=1)


def _interval(value: float, means: NDArray[np.float64], *, level: float) -> Interval:
    if not 0.0 < level < 1.0:
        raise ValueError(f"the level of an interval lies between 0 and 1, found {level}")
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(value=value, low=float(low), high=float(high))
