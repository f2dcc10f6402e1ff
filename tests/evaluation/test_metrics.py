"""Metrics against brute force over all subsets, and against formulas written with loops."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cft.evaluation.metrics import distinct_n, macro_f1, maj_at_k, pass_at_k, self_bleu


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


def test_an_answer_that_was_once_undecided_and_once_right_is_one_ballot() -> None:
    assert maj_at_k(["5", "5", "7"], [False, True, False], k=3) == 1.0
    assert maj_at_k(["5.0", "7", "5", "7", "5"], [False, False, True, False, False], k=5) == 1.0
    assert maj_at_k(["5", "5", "7", "7", "7"], [False, True, False, False, False], k=5) == 0.0
    # What was found right beyond the first k is not known to the vote.
    assert maj_at_k(["5", "5", "5"], [False, False, True], k=2) == 0.0
    # A sample without an answer does not vote for a right one without a text.
    assert maj_at_k(["", "", "", "7", "7"], [True, False, False, False, False], k=5) == 0.0


def test_distinct_n() -> None:
    assert distinct_n([[1, 2, 1, 2]], n=2) == pytest.approx(2 / 3)  # 12 21 12
    assert distinct_n([[1, 2], [1, 2]], n=2) == 0.5
    assert distinct_n([[1, 2], [2, 3]], n=2) == 1.0  # no n-gram across the seam
    assert distinct_n([["a", "b"], ["a"]], n=1) == pytest.approx(2 / 3)
    assert np.isnan(distinct_n([[1], []], n=2))
    with pytest.raises(ValueError, match="n >= 1"):
        distinct_n([[1]], n=0)


def bleu(candidate: list[int], references: list[list[int]]) -> float:
    """Papineni's formula with lists and loops; counts below one become 0.1."""
    precision = 1.0
    orders = [n for n in (1, 2, 3, 4) if len(candidate) >= n]
    for n in orders:
        grams = [candidate[i : i + n] for i in range(len(candidate) - n + 1)]
        matches = 0
        for gram in [g for i, g in enumerate(grams) if g not in grams[:i]]:
            in_reference = max(
                sum(reference[i : i + n] == gram for i in range(len(reference))) for reference in references
            )
            matches += min(grams.count(gram), in_reference)
        precision *= (matches or 0.1) / len(grams)
    length = sorted((len(r) for r in references), key=lambda size: (abs(size - len(candidate)), size))[0]
    penalty = 1.0 if len(candidate) >= length else float(np.exp(1 - length / len(candidate)))
    return penalty * precision ** (1 / len(orders))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=2, max_size=5))
def test_self_bleu_is_the_mean_of_each_against_the_others(sequences: list[list[int]]) -> None:
    expected = np.mean([bleu(s, sequences[:i] + sequences[i + 1 :]) for i, s in enumerate(sequences)])
    assert self_bleu(sequences) == pytest.approx(expected, rel=1e-9)


def test_self_bleu_of_samples_that_are_alike_and_that_share_nothing() -> None:
    assert self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx(1.0)
    assert self_bleu([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]) < 0.05
    # By hand: three of four unigrams, two of three bigrams, one of two trigrams, no 4-gram of one.
    assert self_bleu([[1, 2, 3, 4], [1, 2, 3, 9]]) == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25)
    for undefined in ([[1, 2]], [[1, 2], []], []):
        assert np.isnan(self_bleu(undefined))
    with pytest.raises(ValueError, match="order >= 1"):
        self_bleu([[1], [1]], order=0)


@pytest.mark.parametrize("answer", ["1", "1.0", "", "0", "2"])
def test_a_majority_of_wrong_answers_is_wrong_whatever_they_say(answer: str) -> None:
    assert maj_at_k([answer, answer, "7"], [False, False, True], k=3) == float(answer == "")


@given(st.lists(st.tuples(st.sampled_from("123x"), st.sampled_from("123")), min_size=1, max_size=12))
def test_macro_f1_is_the_mean_of_each_classes_harmonic_mean(pairs: list[tuple[str, str]]) -> None:
    scores = []
    for label in {gold for _, gold in pairs}:
        hits = sum(said == gold == label for said, gold in pairs)
        said, there = (sum(pair[i] == label for pair in pairs) for i in (0, 1))
        precision, recall = hits / said if said else 0.0, hits / there
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    found = macro_f1([said for said, _ in pairs], [gold for _, gold in pairs])
    assert found == pytest.approx(sum(scores) / len(scores))
