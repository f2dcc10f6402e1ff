"""Chooses the positions of each response to test; searches that need outcomes get them for all responses in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cft.annotation.counterfactual import ListSource, Tally
from cft.positions.base import Positions, PositionsError, ResponseView, Search, Wanted
from cft.types import GREEDY, Budget, Completion, Engine, Fork, Outcome, TokenSequence
from cft.verifiers.grader import Grader


@dataclass(frozen=True, slots=True)
class Chosen:
    """Positions of one response. prefix_R: outcomes of the prefix continuations that the search needed, else UNTRIED."""

    wanted_R: Wanted
    prefix_R: NDArray[np.int8]


def choose_positions(
    positions: Positions,
    views: Sequence[ResponseView],
    asked_of: Sequence[tuple[TokenSequence, str]],
    *,
    engine: Engine,
    grader: Grader,
    budget: Budget,
    tally: Tally,
    on_fork: Callable[[Completion], None],
) -> list[Chosen]:
    """Choose the positions to test.

    Args:
        positions: The rule.
        views: The responses as the rule sees them.
        asked_of: Token sequence and gold answer of the same responses.
        engine: Decodes the continuations that the rule needs.
        grader: Grades them.
        budget: Token limit of a response.
        tally: The work done is added to it.
        on_fork: Called after each continuation.

    Raises:
        PositionsError: The rule needs entropies and the engine does not provide them.
    """
    if positions.needs_entropy:
        _require_entropy(positions, views)
    searches = [positions.search(view) for view in views]
    prefixes = [np.full(len(view), Outcome.UNTRIED, dtype=np.int8) for view in views]
    wanted: dict[int, Wanted] = {}
    asked = {i: found for i, search in enumerate(searches) if (found := _next(search, i, wanted)) is not None}
    while asked:
        forks = [_fork(asked_of[i][0], i, t) for i, places in asked.items() for t in places]
        done = dict(engine.run(ListSource(forks), budget=budget))
        order = [fork.key for fork in forks]
        for completion in done.values():
            on_fork(completion)
            tally.probes += 1
            tally.probe_tokens += completion.num_decoded
            tally.num_ties_rescored += completion.num_ties_rescored
        verdicts = grader([(done[key], asked_of[key[0]][1]) for key in order])  # type: ignore[index]
        for (i, t), (outcome, _) in zip(order, verdicts, strict=True):  # type: ignore[misc]
            prefixes[i][t] = outcome
        answers = {i: {t: Outcome(int(prefixes[i][t])) for t in places} for i, places in asked.items()}
        asked = {
            i: found for i, given in answers.items() if (found := _next(searches[i], i, wanted, given)) is not None
        }
    return [Chosen(wanted[i], prefixes[i] if positions.probes else np.zeros(0, np.int8)) for i in range(len(views))]


def _next(
    search: Search, i: int, wanted: dict[int, Wanted], given: dict[int, Outcome] | None = None
) -> list[int] | None:
    """The positions whose outcomes search i needs next; None if it has ended, with its result in `wanted`."""
    try:
        return next(search) if given is None else search.send(given)
    except StopIteration as end:
        wanted[i] = end.value
        return None


def _fork(sequence: TokenSequence, i: int, t: int) -> Fork:
    """The greedy continuation of the response before position t. Its last token becomes the fork's `first_token`."""
    start = sequence.prompt_len
    if t == 0:
        return Fork(sequence, start, None, GREEDY, (i, t))
    return Fork(sequence, start + t - 1, int(sequence.ids[start + t - 1]), GREEDY, (i, t))


def _require_entropy(positions: Positions, views: Sequence[ResponseView]) -> None:
    if any(np.isnan(view.entropy_R).any() for view in views):
        raise PositionsError(
            f"positions={positions.name}: this engine returns only the most probable tokens, not entropies; use "
            "engine=shared_prefix, reference or continuous, or other positions (positions=spans, stride)"
        )
