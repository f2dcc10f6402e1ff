"""The verifier's verdict as a reward.

    right                            1 - length_penalty * scale * tokens / max_new_tokens
    wrong, or cut off unanswered     0
    undecided                        None

TRL excludes a response without a reward from its group's mean and standard deviation and gives it no advantage, so that
undecided responses count neither as right nor as wrong. The length penalty applies only to right responses, after TLDR (arXiv
2505.07961); scale is that of the problem's level of length (`cft/rl/levels.py`), 1 without levels. This is a reconstruction,
since the paper's formula was not available. With factors of at most 1, no right response gets less than a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from cft.types import Completion, Outcome
from cft.verifiers.grader import Grader

PASS_RATE = "pass_rate"
UNDECIDED_RATE = "undecided_rate"


def reward_of(outcome: Outcome, *, tokens: int, max_new_tokens: int, length_penalty: float) -> float | None:
    """Reward of one response with `tokens` tokens; None if it is undecided."""
    if outcome == Outcome.UNDECIDED:
        return None
    return 1.0 - length_penalty * tokens / max_new_tokens if outcome == Outcome.RIGHT else 0.0


def verified_reward(
    grader: Grader,
    *,
    ends: Collection[int],
    max_new_tokens: int,
    length_penalty: float,
    on_outcomes: Callable[[list[Outcome]], None] = lambda outcomes: None,
) -> Callable[..., list[float | None]]:
    """Make a reward function for TRL, which also logs the fraction of right responses among the decided ones, and the fraction
    of undecided ones.

    Args:
        grader: Grades the responses.
        ends: Tokens that end a response; a response with another last token was cut off.
        max_new_tokens: Token limit of a response.
        length_penalty: Coefficient of the length penalty, 0 to 1.
        on_outcomes: Called with the outcomes of a step's responses, in order.
    """

    def verdict(
        *,
        completion_ids: Sequence[Sequence[int]],
        answer: Sequence[str],
        penalty_scale: Sequence[float],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        graded = grader(
            [(completion_of(ids, ends=ends), gold) for ids, gold in zip(completion_ids, answer, strict=True)]
        )
        outcomes = [outcome for outcome, _ in graded]
        on_outcomes(outcomes)
        decided = [outcome for outcome in outcomes if outcome != Outcome.UNDECIDED]
        if log_metric is not None:
            log_metric(UNDECIDED_RATE, 1 - len(decided) / len(outcomes))
            if decided:
                log_metric(PASS_RATE, decided.count(Outcome.RIGHT) / len(decided))
        return [
            reward_of(outcome, tokens=len(ids), max_new_tokens=max_new_tokens, length_penalty=length_penalty * scale)
            for outcome, ids, scale in zip(outcomes, completion_ids, penalty_scale, strict=True)
        ]

    return verdict


def completion_of(ids: Sequence[int], *, ends: Collection[int]) -> Completion:
    finish = "stop" if len(ids) and ids[-1] in ends else "length"
    return Completion(np.asarray(ids, dtype=np.int32), finish, len(ids))
