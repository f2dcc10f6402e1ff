"""Which positions of each response are tried: positions that ask for outcomes get them, of all responses together."""

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
    """Of one response. prefix_R: outcomes of the model's continuations that were asked for on the way, UNTRIED elsewhere."""

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
    """asked_of: of the same responses, their ids and the gold answer. tally: what it costs is added.

    Raises PositionsError where the engine knows no entropies and they are asked for.
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
    """What search i asks for next; None where it has ended, and its result is in `wanted`."""
    try:
        return next(search) if given is None else search.send(given)
    except StopIteration as end:
        wanted[i] = end.value
        return None


def _fork(sequence: TokenSequence, i: int, t: int) -> Fork:
    """The greedy continuation of the response before position t: its last token is the fork's first, so that engines see a
    fork like any other."""
    start = sequence.prompt_len
    if t == 0:
        return Fork(sequence, start, None, GREEDY, (i, t))
    return Fork(sequence, start + t - 1, int(sequence.ids[start + t - 1]), GREEDY, (i, t))


def _require_entropy(positions: Positions, views: Sequence[ResponseView]) -> None:
    if any(np.isnan(view.entropy_R).any() for view in views):
        raise PositionsError(
            f"positions={positions.name}: this engine sees the most probable tokens only and knows no entropies; take "
            "engine=shared_prefix, reference or continuous, or other positions (positions=spans, stride)"
        )
