"""Evaluation metrics: pure functions over numpy arrays, one formula each.

    pass@k        1 - C(n - c, k) / C(n, k), the unbiased estimator            arXiv 2107.03374, eq. 1
    avg@n         right samples / n samples of a problem: pass@1 by another name    (`cft/evaluation/evaluation.py`)
    maj@k         fraction of problems whose most frequent answer is right        arXiv 2203.11171 (self-consistency)
    macro F1      mean over classes of 2 TP / (2 TP + FP + FN)                 of answers that are one of a few options
    distinct-n    different n-grams / all n-grams                              arXiv 1510.03055
    self-BLEU     mean BLEU-4 of each sample against the others                arXiv 1802.01886 (high: all alike)

Nothing here rounds, skips or fills in: a value that is not defined is NaN. Intervals are in `cft/evaluation/intervals.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from cft.evaluation.intervals import Interval, bootstrap_interval, paired_two_way_bootstrap, two_way_bootstrap
from cft.verifiers.numbers import canonical

__all__ = [
    "Interval",
    "bootstrap_interval",
    "distinct_n",
    "macro_f1",
    "maj_at_k",
    "paired_two_way_bootstrap",
    "pass_at_k",
    "self_bleu",
    "two_way_bootstrap",
]


_RIGHT = ("right", True)  # the ballot that all right answers share

Gram = tuple[Hashable, ...]


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

    A tie gives the expected value of breaking it uniformly at random: right winners / winners. As in arXiv 2203.11171
    the vote is on answers, before anyone knows which is right: answers that are equal as numbers or text vote together,
    also where the verifier came to no end on one of them and found the other right. All right answers vote together (it
    says that each equals the gold answer). A sample without an answer ("") does not vote; without any vote the result
    is 0.
    """
    if len(answers) != len(correct):
        raise ValueError(f"maj@k needs one verdict an answer, found {len(answers)} answers and {len(correct)} verdicts")
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} needs at least k answers a problem, found {len(answers)}")
    votes: dict[Hashable, int] = {}
    cast = [
        (canonical(answer), right) for answer, right in zip(answers[:k], correct[:k], strict=True) if right or answer
    ]
    known = {answer for answer, right in cast if right}
    for answer, _ in cast:
        # Not True alone for the right ones: a wrong answer "1" is equal to it.
        ballot: Hashable = _RIGHT if answer in known else (answer,)
        votes[ballot] = votes.get(ballot, 0) + 1
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [ballot for ballot, count in votes.items() if count == most]
    return (_RIGHT in winners) / len(winners)


def macro_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Mean over the classes among the gold answers of 2 TP / (2 TP + FP + FN). In [0, 1], NaN without answers.

    A prediction that is none of these classes ("" or text) is a miss of its own class alone.
    """
    if len(predicted) != len(gold):
        raise ValueError(f"macro F1 needs one prediction an answer, found {len(predicted)} and {len(gold)}")
    right = Counter(answer for answer, one in zip(gold, predicted, strict=True) if answer == one)
    said, there = Counter(predicted), Counter(gold)
    scores = [2 * right[answer] / (said[answer] + there[answer]) for answer in there]
    return float(np.mean(scores)) if scores else float("nan")


def distinct_n(sequences: Sequence[Sequence[Hashable]], *, n: int) -> float:
    """Different n-grams over all n-grams of the sequences together (token ids or words). In (0, 1].

    NaN where no sequence has n tokens: there is nothing to count. n-grams do not cross from one sequence to the next.
    """
    if n < 1:
        raise ValueError(f"distinct-n needs n >= 1, found {n}")
    grams = [tuple(sequence[i : i + n]) for sequence in sequences for i in range(len(sequence) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def self_bleu(sequences: Sequence[Sequence[Hashable]], *, order: int = 4) -> float:
    """Mean BLEU of each sequence with all others as its references: 1 = all the same, near 0 = nothing shared. In [0, 1].

    BLEU as in Papineni et al. 2002 on one sentence: geometric mean of clipped n-gram precisions up to `order`, brevity
    penalty against the reference closest in length (of two as close: the shorter). A precision of zero counts as 0.1
    matches (method 1 of Chen and Cherry 2014), orders longer than the sequence are left out. Token ids or words.
    NaN with fewer than two sequences, or where one is empty.
    """
    if order < 1:
        raise ValueError(f"self-BLEU needs order >= 1, found {order}")
    if len(sequences) < 2 or not all(len(sequence) for sequence in sequences):
        return float("nan")
    lengths = [len(sequence) for sequence in sequences]
    logs = np.zeros((len(sequences), order))
    orders = np.zeros((len(sequences), order))
    for n in range(1, order + 1):
        grams = [_grams(sequence, n) for sequence in sequences]
        highest = _two_highest(grams)
        for i, own in enumerate(grams):
            if total := own.total():
                matches = sum(min(count, highest[gram][highest[gram][0][0] == i][1]) for gram, count in own.items())
                logs[i, n - 1], orders[i, n - 1] = math.log((matches or 0.1) / total), 1
    penalties = [
        min(0.0, 1 - min((abs(other - own), other) for j, other in enumerate(lengths) if j != i)[1] / own)
        for i, own in enumerate(lengths)
    ]
    return float(np.mean(np.exp(np.array(penalties) + logs.sum(1) / orders.sum(1))))


def _grams(sequence: Sequence[Hashable], n: int) -> Counter[Gram]:
    return Counter(tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1))


def _two_highest(counts: Sequence[Counter[Gram]]) -> dict[Gram, tuple[tuple[int, int], tuple[int, int]]]:
    """gram -> ((sequence, count) of its most, and of its second most): what each sequence finds among the others."""
    found: dict[Gram, tuple[tuple[int, int], tuple[int, int]]] = {}
    for i, counter in enumerate(counts):
        for gram, count in counter.items():
            first, second = found.get(gram, ((-1, 0), (-1, 0)))
            if count > first[1]:
                found[gram] = (i, count), first
            elif count > second[1]:
                found[gram] = first, (i, count)
    return found
