"""Sampled evidence: how often sampled continuations after each token end right, in addition to the greedy continuation.

At each tested position, the response's own token and each alternative get `num_samples` sampled continuations. Counts are
stored, so that p(success), its interval and any threshold are computed at load time:

    sampled, sampled_right, sampled_cut_off, sampled_undecided      [R, K + 1]; column 0 is the response's own token

The difference of column 0 between t - 1 and t is how much token t itself changed p(success); column k minus column 0 is how
much the alternative of rank k would have changed it. A sample's random numbers depend only on (seed, response, position, token,
sample number), not on the batch, and additional alternatives or positions do not change existing samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cft.annotation.counterfactual import RESPONSES_AT_A_TIME, Evidence, Tally
from cft.types import AnnotatedResponse, Budget, Completion, Engine, Fork, Key, Outcome, Sampling
from cft.verifiers.grader import Grader

Counts = NDArray[np.int16]  # [R, K + 1]
COLUMNS = ("sampled", "sampled_right", "sampled_cut_off", "sampled_undecided")
_COLUMN = {
    Outcome.RIGHT: "sampled_right",
    Outcome.CUT_OFF: "sampled_cut_off",
    Outcome.UNDECIDED: "sampled_undecided",
}


@dataclass(frozen=True, slots=True)
class SampleDesign:
    """How samples are drawn. num_samples: per token and position."""

    num_samples: int
    temperature: float
    top_p: float
    seed: int

    def settings(self) -> dict[str, Any]:
        """Settings for the fingerprint, as JSON."""
        return {"name": "sampled", **asdict(self)}


def no_samples(length: int, k: int) -> dict[str, Counts]:
    return {name: np.zeros((length, k + 1), dtype=np.int16) for name in COLUMNS}


def stored_samples(row: AnnotatedResponse, *, k: int) -> dict[str, Counts]:
    """Counts of a stored row, padded with zeros to `k` alternatives."""
    return {
        name: np.pad(found, ((0, 0), (0, k + 1 - found.shape[1])))
        for name in COLUMNS
        for found in (getattr(row, name),)
    }


def draw_samples(
    engine: Engine,
    rows: Sequence[Evidence],
    counts: Sequence[dict[str, Counts]],
    *,
    design: SampleDesign,
    grader: Grader,
    budget: Budget,
    tally: Tally,
    on_fork: Callable[[Completion], None],
) -> None:
    """Draw samples for the cells of `counts` without any, at the wanted positions; `counts` is changed in place."""
    received: list[tuple[tuple[int, int, int], Completion]] = []

    def grade() -> None:
        verdicts = grader([(completion, rows[cell[0]].answer) for cell, completion in received])
        for ((index, t, j), _), (outcome, _) in zip(received, verdicts, strict=True):
            counts[index]["sampled"][t, j] += 1
            if outcome in _COLUMN:
                counts[index][_COLUMN[outcome]][t, j] += 1
        received.clear()

    source = _Samples(_forks(rows, counts, design), grader)
    for key, completion in engine.run(source, budget=budget):
        index, t, j, _ = key  # type: ignore[misc]
        received.append(((index, t, j), completion))
        tally.samples += 1
        tally.sample_tokens += completion.num_decoded
        tally.num_ties_rescored += completion.num_ties_rescored
        on_fork(completion)
        if len(received) >= max(64, engine.in_flight):
            grade()
    grade()


def _forks(rows: Sequence[Evidence], counts: Sequence[dict[str, Counts]], design: SampleDesign) -> Iterator[Fork]:
    """Forks of a few responses at a time, so that few prefixes are in memory; longest continuations first."""
    # Computed first, since counts change while forks are still being taken.
    missing = [(row.wanted_R[:, None] & (count["sampled"] == 0)) for row, count in zip(rows, counts, strict=True)]
    for begin in range(0, len(rows), RESPONSES_AT_A_TIME):
        group = range(begin, min(begin + RESPONSES_AT_A_TIME, len(rows)))
        for t in range(max(len(missing[index]) for index in group)):
            for index in group:
                if t < len(missing[index]):
                    for j in np.flatnonzero(missing[index][t]).tolist():
                        yield from _cell(rows[index], index, t, j, design)


def _cell(row: Evidence, index: int, t: int, j: int, design: SampleDesign) -> Iterator[Fork]:
    start = row.sequence.prompt_len + t
    token = int(row.alt_ids_RK[t, j - 1]) if j else int(row.sequence.ids[start])
    for i in range(design.num_samples):
        purpose = f"counterfactual\x1f{row.response_id}\x1f{t}\x1f{token}\x1f{i}"
        sampling = Sampling(design.temperature, design.top_p, design.seed, purpose)
        yield Fork(row.sequence, start, token, sampling, (index, t, j, i))


class _Samples:
    """A ForkSource that creates its forks lazily, since there may be millions."""

    def __init__(self, forks: Iterator[Fork], grader: Grader) -> None:
        self._forks, self._grader = forks, grader

    def take(self, n: int) -> list[Fork]:
        return list(islice(self._forks, n))

    def decided(self, key: Key, ids: Sequence[int]) -> bool:
        del key
        return self._grader.decided(ids)

    def settled(self, key: Key) -> bool:
        del key
        return False
