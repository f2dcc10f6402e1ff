"""The verifier's verdict as a reward.

    right                            1 - length_penalty * tokens / max_new_tokens
    wrong, or cut off unanswered     0
    undecided                        None

TRL leaves a response without a reward out of its group's mean and standard deviation and gives it no advantage, so that a
response that the verifier could not decide counts as neither right nor wrong. The length penalty applies only to right
responses, after TLDR (arXiv 2505.07961); it is a reconstruction, since the paper's formula was not available. With a
coefficient of at most 1, no right response gets a lower reward than a wrong one.
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
    """The reward of a response of `tokens` tokens; formula at the top of this module."""
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
    """A reward function for TRL. It logs the fraction of right responses among the decided ones, and the undecided fraction.

    Args:
        grader: Grades a completion against the gold answer.
        ends: Ids of end tokens; a response that does not end with one was cut off.
        max_new_tokens: Maximum length of a response, tokens.
        length_penalty: Coefficient of the penalty, 0-1.
        on_outcomes: Called with the outcomes of a step's responses, in order.
    """

    def verdict(
        *,
        completion_ids: Sequence[Sequence[int]],
        answer: Sequence[str],
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
            reward_of(outcome, tokens=len(ids), max_new_tokens=max_new_tokens, length_penalty=length_penalty)
            for outcome, ids in zip(outcomes, completion_ids, strict=True)
        ]

    return verdict


def completion_of(ids: Sequence[int], *, ends: Collection[int]) -> Completion:
    finish = "stop" if len(ids) and ids[-1] in ends else "length"
    return Completion(np.asarray(ids, dtype=np.int32), finish, len(ids))
