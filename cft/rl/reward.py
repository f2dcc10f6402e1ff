"""The verifier's verdict as a reward.

    right                            1 - length_penalty * tokens / max_new_tokens
    wrong, or cut off unanswered     0
    undecided                        None

TRL leaves a response without a reward out of its group's mean and deviation and gives it no advantage, so that what the
verifier could not decide is neither right nor wrong. Lengths count only among right responses, after TLDR (arXiv
2505.07961): a reconstruction, since the paper's formula was not at hand; with a coefficient of at most 1 no right response
gets less than a wrong one.
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
    """tokens: of the response."""
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
    """A reward function as TRL calls it, which logs what share is right, of the decided ones, and what share undecided.

    ends: tokens that end a response; one that does not end in them was cut off. on_outcomes: gets those of a step's responses,
    in their order.
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
