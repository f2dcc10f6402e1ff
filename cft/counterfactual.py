"""Which tokens of a correct response decide its answer? (arXiv 2510.10974, section 3; the exact rules: docs in README)

    for each position t of a response, end-of-sequence included:
        the K most probable tokens other than y_t are put in its place, in order of rank;
        what followed is dropped, the model continues greedily, the final answer is verified.
    y_t is critical iff every alternative ends wrong. The first right one settles the position (short-circuit).

This module drives an engine and a verifier and records evidence; which tokens are critical is read off the evidence
by `cft/masks.py`.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cft.errors import BadValue
from cft.spans import decode
from cft.types import (
    GREEDY,
    AnnotatedResponse,
    Budget,
    Completion,
    Engine,
    Fork,
    Judgement,
    Key,
    Outcome,
    TopTokens,
    Trunk,
    Verdict,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VerifyAll = Callable[[Sequence[tuple[str, str]]], list[Verdict]]
RESPONSES_AT_A_TIME = 4
REPLAY = -1  # in place of an alternative's rank: the self-replay control of a position

_OUTCOME = {
    Judgement.RIGHT: Outcome.RIGHT,
    Judgement.WRONG: Outcome.WRONG,
    Judgement.UNDECIDED: Outcome.UNDECIDED,
}


@dataclass(frozen=True, slots=True)
class Judge:
    """Text of a completion -> outcome and final answer, by the one verifier that accuracy uses too."""

    tokenizer: PreTrainedTokenizerBase
    verify_all: VerifyAll
    final: Callable[[str], bool] = lambda text: False  # the verifier's; see cft.types.Verifier

    def __call__(self, completions: Sequence[tuple[Completion, str]]) -> list[tuple[Outcome, str]]:
        """completions: (completion, gold answer). Equal texts with equal answers are verified once."""
        items = [(decode(self.tokenizer, completion.ids), answer) for completion, answer in completions]
        distinct = list(dict.fromkeys(items))
        verdicts = dict(zip(distinct, self.verify_all(distinct), strict=True))
        outcomes = [
            outcome_of(verdicts[item], finish=completion.finish)
            for item, (completion, _) in zip(items, completions, strict=True)
        ]
        # A cut-off text gave no answer: its last number is no vote.
        return [
            (outcome, "" if outcome == Outcome.CUT_OFF else verdicts[item].extracted)
            for item, outcome in zip(items, outcomes, strict=True)
        ]


def outcome_of(verdict: Verdict, *, finish: str) -> Outcome:
    """A cut-off text keeps the verdict of an explicit answer (boxed, ####) it already gave, else it is cut off. Where
    the verifier itself failed nothing is known, whether a right answer stood there neither: undecided. So it is with a
    text that broke off for lack of memory."""
    if finish == "memory":
        return Outcome.UNDECIDED
    if finish == "length" and not verdict.explicit and not verdict.failed:
        return Outcome.CUT_OFF
    return _OUTCOME[verdict.judgement]


@lru_cache(maxsize=1)
def closers(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the tokens whose text could close a marker (`#### 8` and a new line, \\boxed{8}, <answer>8</answer>).

    None where decoding further ids could change what earlier ones gave: then no text is ever looked at early.
    """
    from transformers import PreTrainedTokenizerFast

    fast = isinstance(tokenizer, PreTrainedTokenizerFast)
    if not fast or b"ByteFallback" in tokenizer.backend_tokenizer.decoder.__getstate__():
        return frozenset()  # there a later byte can take back a sign that is in the text already
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return frozenset(token for token, text in enumerate(texts) if any(sign in text for sign in "\n}>"))


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


def alternatives(
    response_ids: NDArray[np.int32], top: TopTokens, *, k: int, eos_ids: Collection[int]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The k most probable tokens other than y_t: ids [R, k] and log-probs [R, k].

    Where y_t is an EOS token the other EOS ids are no alternatives, since they would end the text just the same.
    """
    eos = frozenset(eos_ids)
    ids_RK = np.zeros((len(response_ids), k), dtype=np.int32)
    logprob_RK = np.zeros((len(response_ids), k), dtype=np.float32)
    for t, own in enumerate(response_ids.tolist()):
        excluded = eos if own in eos else {own}
        chosen = [j for j, token in enumerate(top.top_ids_RK[t].tolist()) if token not in excluded][:k]
        if len(chosen) < k:
            raise BadValue(f"num_alternatives={k}: only {len(chosen)} other tokens among the {len(top.top_ids_RK[t])}")
        ids_RK[t] = top.top_ids_RK[t, chosen]
        logprob_RK[t] = top.top_logprob_RK[t, chosen]
    return ids_RK, logprob_RK


def replay_positions(response_id: str, length: int, *, fraction: float) -> NDArray[np.bool_]:
    """[R] True where the self-replay control is run; a function of the response id and the position alone."""
    digests = (
        hashlib.blake2b(f"replay\x1f{response_id}\x1f{t}".encode(), digest_size=8).digest() for t in range(length)
    )
    return np.array([int.from_bytes(d) / 2**64 < fraction for d in digests], dtype=np.bool_)


@dataclass(slots=True)
class Evidence:
    """What is known of one response while its test runs; becomes the alt_* columns of an AnnotatedResponse."""

    response_id: str
    answer: str
    trunk: Trunk
    alt_ids_RK: NDArray[np.int32]
    outcome_RK: NDArray[np.int8]
    answer_RK: list[list[str]]
    tokens_RK: NDArray[np.int32]
    replay_R: NDArray[np.int8]
    replay_wanted_R: NDArray[np.bool_]

    def next_alternatives(self, t: int, *, short_circuit: bool) -> list[int]:
        """Which alternatives of position t to try next: one at a time under short-circuit, else all untried ones."""
        untried = np.flatnonzero(self.outcome_RK[t] == Outcome.UNTRIED).tolist()
        if not short_circuit:
            return untried
        return [] if (self.outcome_RK[t] == Outcome.RIGHT).any() else untried[:1]


@dataclass(slots=True)
class Tally:
    """Work done: forks and tokens decoded, forks settled by the reference engine, replays and those that flipped."""

    forks: int = 0
    tokens: int = 0
    settled_by_reference: int = 0
    replays: int = 0
    replay_flips: int = 0


@dataclass(slots=True)
class CounterfactualSource:
    """Feeds an engine with the forks that are still needed, and judges what comes back.

    The engine calls `take`; the caller hands every completion to `receive`. Verdicts are made in lots, when the queue
    runs short, because the next rank of a position depends on them.

    Order: a few responses at a time, so that few prefixes are in memory, and of these the earliest positions first. They
    have the longest way to go; begun last, they would decode alone at the end.
    """

    rows: Sequence[Evidence]
    judge: Judge
    short_circuit: bool
    tally: Tally = field(default_factory=Tally)
    _queue: list[tuple[int, int, int, Fork]] = field(default_factory=list)  # a heap, in the order of the first three
    _received: list[tuple[Key, Completion]] = field(default_factory=list)
    _pushed: int = 0

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            for t in range(len(row.alt_ids_RK)):
                self._enqueue(index, t)
                if row.replay_wanted_R[t] and row.replay_R[t] == Outcome.UNTRIED:
                    own = int(row.trunk.ids[row.trunk.prompt_len + t])
                    self._push(index, t, own, REPLAY)

    def take(self, n: int) -> list[Fork]:
        if len(self._queue) < n or len(self._received) >= n:
            self._judge_received()
        return [heapq.heappop(self._queue)[-1] for _ in range(min(n, len(self._queue)))]

    def decided(self, key: Key, ids: Sequence[int]) -> bool:
        """The verdict stands. Markers of an answer close with one of a few signs: only there is the text looked at."""
        return ids[-1] in closers(self.judge.tokenizer) and self.judge.final(decode(self.judge.tokenizer, ids))

    def receive(self, key: Key, completion: Completion) -> None:
        self._received.append((key, completion))

    def _enqueue(self, index: int, t: int) -> None:
        row = self.rows[index]
        for k in row.next_alternatives(t, short_circuit=self.short_circuit):
            self._push(index, t, int(row.alt_ids_RK[t, k]), k)

    def _push(self, index: int, t: int, first: int, rank: int) -> None:
        trunk = self.rows[index].trunk
        fork = Fork(trunk, trunk.prompt_len + t, first, GREEDY, (index, t, rank))
        self._pushed += 1
        heapq.heappush(self._queue, (index // RESPONSES_AT_A_TIME, t, self._pushed, fork))

    def _judge_received(self) -> None:
        received, self._received = self._received, []
        if not received:
            return
        completions = [(completion, self.rows[key[0]].answer) for key, completion in received]  # type: ignore[index]
        for (key, completion), (outcome, extracted) in zip(received, self.judge(completions), strict=True):
            index, t, rank = key  # type: ignore[misc]
            row = self.rows[index]
            self.tally.forks += 1
            self.tally.tokens += completion.num_decoded
            self.tally.settled_by_reference += completion.settled_by_reference
            if rank == REPLAY:
                row.replay_R[t] = outcome
                self.tally.replays += 1
                self.tally.replay_flips += outcome != Outcome.RIGHT
                continue
            row.outcome_RK[t, rank] = outcome
            row.answer_RK[t][rank] = extracted
            row.tokens_RK[t, rank] = completion.num_decoded
            if self.short_circuit:
                self._enqueue(index, t)


def run_counterfactuals(
    engine: Engine,
    rows: Sequence[Evidence],
    *,
    judge: Judge,
    budget: Budget,
    short_circuit: bool,
    on_fork: Callable[[Completion], None] = lambda completion: None,
) -> Tally:
    """Fill the untried cells of `rows` in place. on_fork is called for every completion, for progress displays."""
    source = CounterfactualSource(rows, judge, short_circuit)
    for key, completion in engine.run(source, budget=budget):
        source.receive(key, completion)
        on_fork(completion)
    return source.tally


def fresh_evidence(
    *,
    response_id: str,
    answer: str,
    trunk: Trunk,
    alt_ids_RK: NDArray[np.int32],
    replay_fraction: float,
) -> Evidence:
    """Evidence of a response of which nothing has been tried yet."""
    length, k = alt_ids_RK.shape
    return Evidence(
        response_id,
        answer,
        trunk,
        alt_ids_RK,
        np.full((length, k), Outcome.UNTRIED, dtype=np.int8),
        [[""] * k for _ in range(length)],
        np.zeros((length, k), dtype=np.int32),
        np.full(length, Outcome.UNTRIED, dtype=np.int8),
        replay_positions(response_id, length, fraction=replay_fraction),
    )


def stored_evidence(row: AnnotatedResponse, *, alt_ids_RK: NDArray[np.int32]) -> Evidence:
    """Evidence of a stored row, widened by untried columns where `alt_ids_RK` has more alternatives than it.

    Raises ValueError if the stored alternatives are not the first columns of alt_ids_RK: another model or tokenizer.
    """
    stored_k, k = row.alt_ids.shape[1], alt_ids_RK.shape[1]
    if not np.array_equal(row.alt_ids, alt_ids_RK[:, :stored_k]):
        raise BadValue(
            f"response {row.response_id}: the model ranks other alternatives than the stored ones; the annotation was "
            "made with other weights, precision or tokenizer. Annotate anew under another name."
        )
    extra = k - stored_k
    return Evidence(
        row.response_id,
        row.answer,
        Trunk(np.concatenate([row.prompt_ids, row.response_ids]), len(row.prompt_ids)),
        alt_ids_RK,
        np.pad(row.alt_outcome, ((0, 0), (0, extra)), constant_values=Outcome.UNTRIED),
        [[*answers, *([""] * extra)] for answers in row.alt_answer],
        np.pad(row.alt_tokens, ((0, 0), (0, extra))),
        row.replay_outcome.copy(),
        np.zeros(len(row.response_ids), dtype=np.bool_),
    )
