"""The counterfactual test: which tokens of a correct response decide its answer (arXiv 2510.10974, section 3).

    for each position t of a response, end-of-sequence included:
        y_t is replaced by each of the K most probable other tokens, in order of rank;
        the rest of the response is dropped, the model continues greedily, and the final answer is verified.
    y_t is critical iff every alternative ends wrong. The first right one decides the position (short-circuit).

This module drives an engine and a verifier and records evidence; `cft/masks/critical.py` derives the critical tokens from it.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cft.errors import BadValue
from cft.types import (
    GREEDY,
    AnnotatedResponse,
    Budget,
    Completion,
    Engine,
    Fork,
    Key,
    Outcome,
    TokenSequence,
    TopTokens,
)
from cft.verifiers.grader import Grader

Cell = tuple[int, int, int]  # response, position, rank of the alternative or REPLAY
RESPONSES_AT_A_TIME = 4
# Speculate while the forks in flight are below this fraction of the engine's capacity. If most verdicts are wrong, the next
# rank is likely to be needed; otherwise only idle rows are cheap enough.
SPECULATE_BELOW = 1.0
SPECULATE_BELOW_IF_RIGHT = 0.25
REPLAY = -1  # in place of an alternative's rank: the self-replay control of a position


class ListSource:
    """The simplest ForkSource: a fixed list."""

    def __init__(self, forks: Sequence[Fork], *, on_take: Callable[[int], None] = lambda taken: None) -> None:
        self._forks = deque(forks)
        self._on_take = on_take

    def take(self, n: int) -> list[Fork]:
        taken = [self._forks.popleft() for _ in range(min(n, len(self._forks)))]
        self._on_take(len(taken))
        return taken

    def decided(self, key: Key, ids: Sequence[int]) -> bool:
        return False

    def settled(self, key: Key) -> bool:
        return False


def alternatives(
    response_ids: NDArray[np.int32],
    top: TopTokens,
    *,
    k: int,
    eos_ids: Collection[int],
    padding_ids: Collection[int] = (),
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The k most probable tokens other than y_t: ids [R, k] and log-probs [R, k].

    If y_t is an EOS token, the other EOS ids are excluded, since they would end the text as well. `padding_ids` are excluded
    because they have no text.
    """
    eos, padding = frozenset(eos_ids), frozenset(padding_ids)
    ids_RK = np.zeros((len(response_ids), k), dtype=np.int32)
    logprob_RK = np.zeros((len(response_ids), k), dtype=np.float32)
    for t, own in enumerate(response_ids.tolist()):
        excluded = padding | (eos if own in eos else {own})
        chosen = [j for j, token in enumerate(top.top_ids_RK[t].tolist()) if token not in excluded][:k]
        if len(chosen) < k:
            raise BadValue(f"num_alternatives={k}: only {len(chosen)} other tokens among the {len(top.top_ids_RK[t])}")
        ids_RK[t] = top.top_ids_RK[t, chosen]
        logprob_RK[t] = top.top_logprob_RK[t, chosen]
    return ids_RK, logprob_RK


def replay_positions(response_id: str, length: int, *, fraction: float) -> NDArray[np.bool_]:
    """[R] True where the self-replay control is run; depends only on the response id and the position."""
    digests = (
        hashlib.blake2b(f"replay\x1f{response_id}\x1f{t}".encode(), digest_size=8).digest() for t in range(length)
    )
    return np.array([int.from_bytes(d) / 2**64 < fraction for d in digests], dtype=np.bool_)


@dataclass(slots=True)
class Evidence:
    """Evidence about one response while its test runs; becomes the alt_* columns of an AnnotatedResponse.

    wanted_R: positions whose alternatives are tried. expected: expected outcome of a replay of the response's own token.
    """

    response_id: str
    answer: str
    sequence: TokenSequence
    alt_ids_RK: NDArray[np.int32]
    outcome_RK: NDArray[np.int8]
    answer_RK: list[list[str]]
    tokens_RK: NDArray[np.int32]
    replay_R: NDArray[np.int8]
    replay_wanted_R: NDArray[np.bool_]
    wanted_R: NDArray[np.bool_]
    expected: Outcome = Outcome.RIGHT

    def next_alternatives(self, t: int, *, short_circuit: bool) -> list[int]:
        """Which alternatives of position t to try next: one at a time under short-circuit, else all untried ones."""
        if not self.wanted_R[t]:
            return []
        untried = np.flatnonzero(self.outcome_RK[t] == Outcome.UNTRIED).tolist()
        if not short_circuit:
            return untried
        return [] if (self.outcome_RK[t] == Outcome.RIGHT).any() else untried[:1]


@dataclass(slots=True)
class Tally:
    """Work done: forks and tokens decoded, near ties re-scored, replays, and replays with another outcome than expected.

    The following are not included in the other counts.
    probes, probe_tokens: continuations of response prefixes that were needed to choose positions.
    samples, sample_tokens: sampled continuations.
    speculative_tokens: tokens of forks that turned out not to be needed.
    """

    forks: int = 0
    tokens: int = 0
    num_ties_rescored: int = 0
    replays: int = 0
    replay_flips: int = 0
    speculative_tokens: int = 0
    probes: int = 0
    probe_tokens: int = 0
    samples: int = 0
    sample_tokens: int = 0


@dataclass(slots=True)
class CounterfactualSource:
    """Supplies an engine with the forks that are still needed, and grades the completions.

    The engine calls `take`; the caller passes every completion to `receive`. Completions are graded in groups, when the queue
    runs short, because the next rank of a position depends on the verdicts.

    Order: a few responses at a time, so that few prefixes are in memory, and within them the earliest positions first. These
    have the longest continuations; if started last, they would decode in a nearly empty batch at the end. For the same reason
    the next rank of a position is started speculatively, before the verdict of the previous one, if rows would be idle
    otherwise. Its result is used only if it is needed, so the evidence is the same.
    """

    rows: Sequence[Evidence]
    grader: Grader
    short_circuit: bool
    in_flight: int  # of the engine
    tally: Tally = field(default_factory=Tally)
    _queue: list[tuple[int, int, int, Fork]] = field(default_factory=list)  # a heap, in the order of the first three
    _pushed: int = 0
    _in_flight: set[Cell] = field(default_factory=set)  # in the queue or in the engine
    _received: list[tuple[Cell, Completion]] = field(default_factory=list)  # to be graded
    _early: dict[Cell, Completion] = field(default_factory=dict)  # finished before the preceding rank was graded
    _right: set[tuple[int, int]] = field(default_factory=set)  # positions decided by a right alternative

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            for t in range(len(row.alt_ids_RK)):
                self._push_next(index, t)
                if row.replay_wanted_R[t] and row.replay_R[t] == Outcome.UNTRIED:
                    self._push((index, t, REPLAY), int(row.sequence.ids[row.sequence.prompt_len + t]))

    def take(self, n: int) -> list[Fork]:
        if len(self._queue) < n or len(self._received) >= n:
            self._grade_received()
        forks = self._popped(n)
        graded = self.tally.forks
        fraction = SPECULATE_BELOW_IF_RIGHT if 2 * len(self._right) > graded else SPECULATE_BELOW
        idle = len(self._in_flight) <= fraction * self.in_flight
        if len(forks) < n and self.short_circuit and graded and idle:
            self._speculate()
            forks += self._popped(n - len(forks))
        return forks

    def _popped(self, n: int) -> list[Fork]:
        forks: list[Fork] = []
        while self._queue and len(forks) < n:
            fork = heapq.heappop(self._queue)[-1]
            cell: Cell = fork.key  # type: ignore[assignment]
            if self.settled(cell):
                self._in_flight.discard(cell)  # speculative, and no longer needed
            else:
                forks.append(fork)
        return forks

    def decided(self, key: Key, ids: Sequence[int]) -> bool:
        """Whether the position is decided or the verdict is final (`Grader.decided`)."""
        return self.settled(key) or self.grader.decided(ids)

    def settled(self, key: Key) -> bool:
        """Whether the position is decided: a right alternative of an earlier rank is known."""
        index, t, rank = key  # type: ignore[misc]
        return rank != REPLAY and (index, t) in self._right

    def receive(self, key: Key, completion: Completion) -> None:
        cell: Cell = key  # type: ignore[assignment]
        index, t, rank = cell
        self._in_flight.discard(cell)
        if self.settled(cell):
            self.tally.speculative_tokens += completion.num_decoded
        elif (
            rank != REPLAY
            and self.short_circuit
            and self.rows[index].next_alternatives(t, short_circuit=True) != [rank]
        ):
            self._early[cell] = completion
        else:
            self._received.append((cell, completion))

    def _push_next(self, index: int, t: int) -> None:
        row = self.rows[index]
        for k in row.next_alternatives(t, short_circuit=self.short_circuit):
            cell = (index, t, k)
            if cell in self._early:
                self._received.append((cell, self._early.pop(cell)))
            elif cell not in self._in_flight:
                self._push(cell, int(row.alt_ids_RK[t, k]))

    def _push(self, cell: Cell, first: int) -> None:
        index, t, _ = cell
        sequence = self.rows[index].sequence
        self._pushed += 1
        self._in_flight.add(cell)
        fork = Fork(sequence, sequence.prompt_len + t, first, GREEDY, cell)
        heapq.heappush(self._queue, (index // RESPONSES_AT_A_TIME, t, self._pushed, fork))

    def _speculate(self) -> None:
        for index, t, rank in sorted(self._in_flight):
            if rank == REPLAY or self.settled((index, t, rank)):
                continue
            row, cell = self.rows[index], (index, t, rank + 1)
            last = rank + 1 == row.alt_ids_RK.shape[1]
            if last or cell in self._in_flight or cell in self._early or row.outcome_RK[t, rank + 1] != Outcome.UNTRIED:
                continue
            self._push(cell, int(row.alt_ids_RK[t, rank + 1]))

    def _grade_received(self) -> None:
        while self._received:
            received, self._received = self._received, []
            completions = [(completion, self.rows[index].answer) for (index, _, _), completion in received]
            for (cell, completion), verdict in zip(received, self.grader(completions), strict=True):
                self._record(cell, completion, *verdict)

    def _record(self, cell: Cell, completion: Completion, outcome: Outcome, extracted: str) -> None:
        index, t, rank = cell
        row = self.rows[index]
        self.tally.forks += 1
        self.tally.tokens += completion.num_decoded
        self.tally.num_ties_rescored += completion.num_ties_rescored
        if rank == REPLAY:
            row.replay_R[t] = outcome
            self.tally.replays += 1
            self.tally.replay_flips += outcome != row.expected
            return
        row.outcome_RK[t, rank] = outcome
        row.answer_RK[t][rank] = extracted
        row.tokens_RK[t, rank] = completion.num_decoded
        if not self.short_circuit:
            return
        if outcome == Outcome.RIGHT:
            self._right.add((index, t))
            for k in range(rank + 1, row.alt_ids_RK.shape[1]):
                if (unneeded := self._early.pop((index, t, k), None)) is not None:
                    self.tally.speculative_tokens += unneeded.num_decoded
        else:
            self._push_next(index, t)


def run_counterfactuals(
    engine: Engine,
    rows: Sequence[Evidence],
    *,
    grader: Grader,
    budget: Budget,
    short_circuit: bool,
    tally: Tally | None = None,
    on_fork: Callable[[Completion], None] = lambda completion: None,
) -> Tally:
    """Fill the untried cells of `rows` in place.

    Args:
        engine: Decodes the continuations.
        rows: Evidence to fill.
        grader: Grades the continuations.
        budget: Token limit of a response.
        short_circuit: Stop testing a position at its first right alternative.
        tally: Counts to add to, None = new ones.
        on_fork: Called after each continuation, for progress displays.

    Returns:
        The tally.
    """
    source = CounterfactualSource(rows, grader, short_circuit, engine.in_flight, tally or Tally())
    for key, completion in engine.run(source, budget=budget):
        source.receive(key, completion)
        on_fork(completion)
    return source.tally


def fresh_evidence(
    *,
    response_id: str,
    answer: str,
    sequence: TokenSequence,
    alt_ids_RK: NDArray[np.int32],
    replay_fraction: float,
    wanted_R: NDArray[np.bool_] | None = None,
    expected: Outcome = Outcome.RIGHT,
) -> Evidence:
    """Empty evidence of a new response. wanted_R: positions to test and to replay, None = all."""
    length, k = alt_ids_RK.shape
    wanted_R = np.ones(length, dtype=np.bool_) if wanted_R is None else wanted_R
    return Evidence(
        response_id,
        answer,
        sequence,
        alt_ids_RK,
        np.full((length, k), Outcome.UNTRIED, dtype=np.int8),
        [[""] * k for _ in range(length)],
        np.zeros((length, k), dtype=np.int32),
        np.full(length, Outcome.UNTRIED, dtype=np.int8),
        replay_positions(response_id, length, fraction=replay_fraction) & wanted_R,
        wanted_R,
        expected,
    )


def stored_evidence(row: AnnotatedResponse, *, alt_ids_RK: NDArray[np.int32], every_position: bool = True) -> Evidence:
    """Evidence of a stored row, with untried columns for the additional alternatives of `alt_ids_RK`.

    Args:
        row: The stored row.
        alt_ids_RK: Its alternatives, at least as many as are stored.
        every_position: Whether to test positions of which no alternative was tried yet.

    Raises:
        BadValue: The stored alternatives are not the first columns of alt_ids_RK, so the model or tokenizer has changed.
    """
    stored_k, k = row.alt_ids.shape[1], alt_ids_RK.shape[1]
    if not np.array_equal(row.alt_ids, alt_ids_RK[:, :stored_k]):
        raise BadValue(
            f"response {row.response_id}: the model ranks other alternatives than the stored ones; the annotation was "
            "made with different weights, precision or tokenizer. Annotate again under another name."
        )
    extra = k - stored_k
    return Evidence(
        row.response_id,
        row.answer,
        TokenSequence(np.concatenate([row.prompt_ids, row.response_ids]), len(row.prompt_ids)),
        alt_ids_RK,
        np.pad(row.alt_outcome, ((0, 0), (0, extra)), constant_values=Outcome.UNTRIED),
        [[*answers, *([""] * extra)] for answers in row.alt_answer],
        np.pad(row.alt_tokens, ((0, 0), (0, extra))),
        row.replay_outcome.copy(),
        np.zeros(len(row.response_ids), dtype=np.bool_),
        row.tried_R | every_position,
    )
