"""Replacing two tokens at once: which pairs, what the engine is asked, what is counted."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from cft.masks import Critical
from cft.types import Budget, Completion, Decision, Fork, Verdict
from cft.verifiers.grader import Grader
from experiments.interdependence import Pair, forks_of, pairs_of, replace_pairs, share, summary
from tests.fakes import ScriptedEngine, row

EOS = frozenset({0})
# Positions 0, 1, 3, 4 are not critical; position 5 is the end; at position 3 the first alternative ends wrong.
OUTCOMES = [[1, -1], [1, -1], [0, 0], [0, 1], [1, -1], [1, -1]]


def test_pairs_are_of_non_critical_tokens_each_once_and_never_of_the_end() -> None:
    one = row([5, 6, 7, 8, 9, 0], outcomes=OUTCOMES)
    every = pairs_of(one, 3, count=99, eos=EOS, rng=np.random.default_rng(0))
    assert {(p.s, p.t) for p in every} == {(0, 1), (0, 3), (0, 4), (1, 3), (1, 4), (3, 4)}
    assert {p.row for p in every} == {3}
    assert len(pairs_of(one, 0, count=4, eos=EOS, rng=np.random.default_rng(0))) == 4
    one.alt_ids[0, 0] = 0  # would end the response at once: nothing is left to replace
    assert {p.s for p in pairs_of(one, 0, count=99, eos=EOS, rng=np.random.default_rng(0))} == {1, 3}
    assert pairs_of(row([5, 0], outcomes=[[0, 0], [1, -1]]), 0, count=5, eos=EOS, rng=np.random.default_rng(0)) == []
    assert Critical()(one).tolist() == [0, 0, 1, 0, 0, 0]


def test_the_first_replacement_and_the_originals_words_stand_before_the_second() -> None:
    one = row([5, 6, 7, 8, 9, 0], outcomes=OUTCOMES, prompt_ids=(1, 2, 3))
    one.alt_ids[:, 0] = [20, 21, 22, 23, 24, 25]
    joint, kept = forks_of(one, [Pair(0, 1, 4)])
    for fork, first in ((joint, 24), (kept, 9)):
        assert fork.sequence.ids[: fork.prefix_len].tolist() == [1, 2, 3, 5, 21, 7, 8]
        assert fork.first_token == first
    assert one.response_ids.tolist() == [5, 6, 7, 8, 9, 0]  # the stored row is left alone


def test_shares_by_hand() -> None:
    """Continuations after token 99 end wrong, after 98 they are cut off, all others are right."""
    rows = [row([5, 6, 7, 8, 9, 0], outcomes=OUTCOMES, number=i) for i in range(2)]
    rows[0].alt_ids[:, 0] = [20, 99, 22, 98, 24, 25]
    pairs = [Pair(0, 0, 1), Pair(0, 0, 3), Pair(1, 0, 4)]

    def answer(fork: Fork) -> Completion:
        return Completion(np.array([fork.first_token], np.int32), "length" if fork.first_token == 98 else "stop", 1)

    class Tokenizer:
        all_special_ids = ()

        @staticmethod
        def decode(ids: list[int], **_: object) -> str:
            return " ".join(map(str, ids))

    def verify(items: object) -> list[Verdict]:
        return [
            Verdict(Decision.WRONG if text == "99" else Decision.RIGHT, text, False, "")
            for text, _ in items  # type: ignore[attr-defined]
        ]

    grader = Grader(Tokenizer(), verify)  # type: ignore[arg-type]
    wrong = replace_pairs(ScriptedEngine(answer), rows, pairs, grader=grader, budget=Budget(64))
    assert [wrong[pair, "joint"] for pair in pairs] == [True, True, False]
    assert not any(wrong[pair, "kept"] for pair in pairs)
    found = summary(rows, pairs, wrong)
    assert found["pairs"] == 3
    assert found["joint_wrong"]["value"] == 2 / 3
    assert found["single_wrong"]["value"] == (0 + 0.5 + 0) / 3  # position 3 alone ends wrong
    assert found["either_single_wrong"]["value"] == 1 / 3
    assert found["harmless_pairs"] == 2
    assert found["harmless_joint_wrong"]["value"] == 0.5
    assert found["harmless_joint_minus_kept"]["value"] == 0.5
    assert [(d["from"], d["pairs"]) for d in found["harmless_by_distance"]] == [(1, 1), (2, 1), (6, 0), (16, 0)]
    assert found["harmless_by_distance"][2]["joint_wrong"] is None


def test_pairs_of_a_response_stay_together_in_the_interval() -> None:
    """Fifty responses whose ten pairs all agree: the interval is that of fifty values, not of five hundred."""
    by_row = (np.arange(50) < 15).astype(float)
    together = share(np.repeat(by_row, 10), np.repeat(np.arange(50), 10))
    single = share(by_row, np.arange(50))
    assert together.value == single.value == 0.3
    assert (together.low, together.high) == (single.low, single.high)
    assert together.high - together.low > 0.2


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_none_or_all_wrong_has_an_interval_of_a_width(value: float) -> None:
    """Of 29 responses with one pair each, the exact (Clopper-Pearson) limit is 0.119; the interval lies about there."""
    one = share(np.full(29, value), np.arange(29))
    exact = scipy.stats.beta.ppf(0.975, 1, 29)
    assert one.value == value
    assert (one.low if value == 0 else 1 - one.high) == 0
    assert abs(one.high - one.low - exact) < 0.025
    more = share(np.full(580, value), np.arange(580))  # twenty times as many
    assert 0 < more.high - more.low < 0.01


def test_a_difference_is_open_in_the_direction_that_was_not_seen() -> None:
    rows = np.arange(40)
    none = share(np.zeros(40), rows, difference=True)
    assert -0.12 < none.low < -0.03
    assert 0.03 < none.high < 0.12
    both = np.array([1.0] * 10 + [-1.0] * 10 + [0.0] * 20)
    plain = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=10_000) @ both / 40
    found = share(both, rows, difference=True)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])))
