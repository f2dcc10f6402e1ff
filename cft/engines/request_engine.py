"""Base of engines that send requests to an external decoder, with a bounded number of requests in flight.

    caller's thread      take forks -> send -> wait for a response -> yield it -> take again ...
    event loop's thread  requests and responses, while the caller verifies

There is no barrier: as soon as one response arrives, the next fork is sent. A fork whose outcome no longer matters is
cancelled. The ranks of a response's alternatives come from the pass that decoded the response (`Fork.top_k`); only given
responses need a scoring pass of their own.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from cft.engines.factory import EngineError
from cft.engines.reference import already_finished, finish_of, fork_prefix, response_of
from cft.engines.refusals import require_unadjusted
from cft.engines.requests import DecodeRequest, DecodeResponse, Ranked, top_tokens_of
from cft.types import Budget, Completion, Fork, ForkSource, Key, TokenSequence, TopTokens

CHOSEN_BELOW_BEST = 0.01  # nats; tolerance for the rounding of log-probs when checking that a greedy choice is the best
Result = TypeVar("Result")
Pending = tuple[Fork, Future[DecodeResponse | None]]


class RequestEngine(ABC):
    """Base of engines that send requests. A subclass implements `answer`, `facts` and `end`.

    Args:
        name: As in engine=name, for messages.
        eos_ids: Every token that ends a response.
        in_flight: Maximum number of requests in flight.
        ranks_given: Whether the decoder returns log-probs of given tokens; otherwise alternatives are ranked by one request per
            position.
    """

    exact = False

    def __init__(self, name: str, eos_ids: Collection[int], *, in_flight: int, ranks_given: bool = True) -> None:
        self.name = name
        self.eos_ids = frozenset(eos_ids)
        self.in_flight = in_flight
        self.ranks_given = ranks_given
        self.num_given_up = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"engine={name}", daemon=True)
        self._thread.start()

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """See `cft.types.Engine.facts`."""

    @abstractmethod
    async def answer(self, request: DecodeRequest, *, sequence: TokenSequence) -> DecodeResponse | None:
        """Decode one request. Raises EngineError.

        Args:
            request: The request.
            sequence: The sequence that it continues.

        Returns:
            The response, or None if it did not fit or every attempt failed.
        """

    @abstractmethod
    async def end(self) -> None:
        """Release the subclass's resources; runs in the event loop."""

    def close(self) -> None:
        if self._loop.is_closed():
            return
        try:
            self.wait(self.end())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.submit(work).result()

    def run(self, source: ForkSource, *, budget: Budget) -> Iterator[tuple[Key, Completion]]:
        answered: queue.SimpleQueue[Pending] = queue.SimpleQueue()
        in_flight: dict[Key, Pending] = {}
        try:
            while True:
                room = self.in_flight - len(in_flight)
                forks = source.take(room) if room else []
                for fork in forks:
                    finish = already_finished(fork, eos_ids=self.eos_ids, budget=budget)
                    if finish is None:
                        pending = fork, self.submit(self.answer(self._request(fork, budget), sequence=fork.sequence))
                        in_flight[fork.key] = pending
                        pending[1].add_done_callback(lambda _, pending=pending: answered.put(pending))
                    else:
                        yield fork.key, Completion(response_of(fork_prefix(fork), fork), finish, 0)
                if not in_flight:
                    if not forks:
                        return
                    continue
                for fork, future in _arrived(answered):
                    del in_flight[fork.key]
                    yield fork.key, self._completion(fork, future, source=source, budget=budget)
                for key, (_, future) in in_flight.items():
                    if source.settled(key):
                        future.cancel()
        finally:
            for _, future in in_flight.values():
                future.cancel()

    def score_all(self, sequences: Sequence[TokenSequence], *, k: int) -> Iterator[tuple[int, TopTokens]]:
        waiting = list(enumerate(sequences))[::-1]
        in_flight: dict[Future[list[Ranked]], int] = {}
        scored: queue.SimpleQueue[Future[list[Ranked]]] = queue.SimpleQueue()
        try:
            while waiting or in_flight:
                while waiting and len(in_flight) < self.in_flight:
                    index, sequence = waiting.pop()
                    future = self.submit(self._scored(sequence, k=k))
                    in_flight[future] = index
                    future.add_done_callback(scored.put)
                future = scored.get()
                yield in_flight.pop(future), top_tokens_of(future.result(), k=k)
        finally:
            for future in in_flight:
                future.cancel()

    def _request(self, fork: Fork, budget: Budget) -> DecodeRequest:
        require_unadjusted(fork.sampling, name=self.name)
        ids = fork_prefix(fork)
        limit = fork.limit(budget) - (len(ids) - fork.sequence.prompt_len)
        # For sampled tokens some servers return log-probs after the temperature; a scoring pass returns the model's own.
        usable = not fork.sampling.temperature or not self.ranks_given
        return DecodeRequest(
            ids, limit, self.eos_ids, fork.sampling, top=fork.top_k if usable and _from_the_start(fork) else 0
        )

    def _completion(
        self, fork: Fork, future: Future[DecodeResponse | None], *, source: ForkSource, budget: Budget
    ) -> Completion:
        kept = fork_prefix(fork)
        if future.cancelled():
            return Completion(response_of(kept, fork), "decided", 0)
        response = future.result()
        if response is None:
            self.num_given_up += 1
            return Completion(response_of(kept, fork), "memory", 0)
        ids, finish = list(kept), None
        for token in response.ids:
            ids.append(token)
            finish = finish_of(ids, fork, eos_ids=self.eos_ids, budget=budget, decided=source.decided)
            if finish is not None:
                break
        decoded = len(ids) - len(kept)
        if finish is None and response.ended == "stop":
            raise EngineError(
                f"engine={self.name}: a response was reported as stopped, but its last token is "
                f"{ids[-1] if decoded else 'missing'}, which is none of {sorted(self.eos_ids)}: the end token was cut off, or "
                "the server has other end tokens. Serve the same model files (generation_config.json), or name the end tokens "
                "in model.eos_tokens"
            )
        top = None
        if response.decoded and decoded and _from_the_start(fork):
            positions = response.decoded[:decoded]
            if not fork.sampling.temperature:
                self._require_best(positions)
            top = top_tokens_of(positions, k=fork.top_k)
        # Without an end token and below its limit: the context was full.
        return Completion(response_of(ids, fork), finish or "memory", decoded, top=top)

    def _require_best(self, positions: Sequence[Ranked]) -> None:
        for position in positions:
            best = max(position.top.values())
            if position.own < best - CHOSEN_BELOW_BEST:
                raise EngineError(
                    f"engine={self.name}: greedy decoding chose a token of log-prob {position.own:.3f} where the best had "
                    f"{best:.3f}: a penalty or sampling default is at work. Start the server without it (vLLM: "
                    "--generation-config vllm)"
                )

    async def _scored(self, sequence: TokenSequence, *, k: int) -> list[Ranked]:
        ids = sequence.ids.tolist()
        if len(ids) <= sequence.prompt_len:
            raise ValueError(f"score needs a response: sequence of {len(ids)} tokens, prompt of {sequence.prompt_len}")
        if self.ranks_given:
            whole = DecodeRequest(ids, 1, self.eos_ids, top=k, score_from=sequence.prompt_len)
            return (await self._answered(whole, sequence)).prompt
        positions = range(sequence.prompt_len, len(ids))
        asked = (DecodeRequest(ids[:t], 1, self.eos_ids, top=k) for t in positions)
        found = await asyncio.gather(*(self._answered(request, sequence) for request in asked))
        return [self._given(one.decoded[0], ids[t]) for one, t in zip(found, positions, strict=True)]

    async def _answered(self, request: DecodeRequest, sequence: TokenSequence) -> DecodeResponse:
        response = await self.answer(request, sequence=sequence)
        if response is None:
            raise EngineError(
                f"engine={self.name}: a response of {len(sequence.ids)} tokens, prompt included, could not be scored: the "
                "context has no room for it and one more token, or every attempt failed; give the server a longer context"
            )
        return response

    def _given(self, position: Ranked, token: int) -> Ranked:
        if token not in position.top:
            raise EngineError(
                f"engine={self.name}: the server returns log-probs of the {len(position.top)} most probable tokens only, and a "
                "given response contains another token; use vLLM or SGLang for responses=given"
            )
        return Ranked(position.top[token], position.top)


def _from_the_start(fork: Fork) -> bool:
    return fork.first_token is None and fork.prefix_len == fork.sequence.prompt_len


def _arrived(answered: queue.SimpleQueue[Pending]) -> Iterator[Pending]:
    """Wait for one response; yield it and all others that have arrived by now."""
    for _ in range(max(1, answered.qsize())):
        yield answered.get()
