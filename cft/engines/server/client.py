"""Sends requests to several servers of the same model, with retries.

    choice of server                              by the request's prefix, so that a prefix is cached on one server, unless
                                                  that server has far more requests in flight than the others
    429, 500, 502, 503, 504, timeouts, resets     retry with the same ids after a pause, preferably on another server
    an unhealthy server                           not used until healthy again; if all are unhealthy: wait, then EngineError
    context too long, or all retries failed       None: nothing is known about this continuation

Retries are safe: a request has no side effects, and its result depends only on its ids.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from cft.engines.factory import EngineError
from cft.engines.requests import DecodeRequest, DecodeResponse
from cft.engines.server.wires import Wire, WireError

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
TOO_LONG = re.compile(
    r"context.?(length|size|window)|maximum model length|max_model_len|exceeds? the (available|maximum)", re.IGNORECASE
)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0
HEALTH_EVERY_S, HEALTH_TIMEOUT_S = 0.5, 5.0
CROWDED = 1.25  # maximum load of a server, relative to the mean number of requests in flight
_NETWORK = (aiohttp.ClientError, asyncio.TimeoutError, OSError)


class TooLong(Exception):
    """Prompt and continuation exceed the server's context."""


class Unanswered(Exception):
    """A failure that a retry or another server may solve; the message says what happened."""


@dataclass(slots=True, eq=False)
class Replica:
    """One server. in_flight: requests sent and not answered yet."""

    url: str
    model: str = ""
    up: bool = True
    in_flight: int = 0


class Client:
    """Sends requests; must be used from a single event loop.

    Args:
        urls: URLs of the servers, without a path.
        timeout_s: Timeout of a single request in seconds, queueing at the server included.
        retries: How often a request is retried.
        patience_s: How long to wait, in seconds, while no server is healthy.
        token: Sent as bearer token, "" for none.
    """

    def __init__(
        self, urls: Sequence[str], *, timeout_s: float, retries: int, patience_s: float, token: str = ""
    ) -> None:
        self.replicas = [Replica(url.rstrip("/")) for url in urls]
        self.retries, self.patience_s = retries, patience_s
        self.retried = 0
        self._waking: dict[Replica, asyncio.Task[None]] = {}
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, 30.0)),
            headers=headers,
        )

    async def close(self) -> None:
        for task in self._waking.values():
            task.cancel()
        await self._session.close()

    async def decode(self, request: DecodeRequest, *, wire: Wire, affinity: bytes = b"") -> DecodeResponse | None:
        """Send a request, with retries.

        Args:
            request: The request.
            wire: Kind of the servers.
            affinity: Requests with equal bytes go to the same server if possible.

        Returns:
            The response, or None if the request is too long for the context or all retries failed.

        Raises:
            EngineError: No server is healthy, or a response does not fit this wire.
        """
        failed: Replica | None = None
        for attempt in range(self.retries + 1):
            replica = await self._choose(affinity, avoided=failed)
            try:
                return await self.decode_at(replica, request, wire=wire)
            except TooLong:
                return None
            except Unanswered:
                failed = replica
                self.retried += 1
                await self._examine(replica)
            if attempt < self.retries:
                await asyncio.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt))
        return None

    async def decode_at(self, replica: Replica, request: DecodeRequest, *, wire: Wire) -> DecodeResponse:
        """One attempt on one server. Raises TooLong, EngineError or, if a retry may succeed, Unanswered."""
        replica.in_flight += 1
        try:
            payload = await self._post(replica, wire.path, wire.body(request, model=replica.model))
            response = wire.read(payload, request)
        except WireError as error:
            raise EngineError(f"engine.url={replica.url}{wire.path} (wire {wire.name}): {error}") from error
        finally:
            replica.in_flight -= 1
        if response.ended == "abort":
            raise Unanswered("the server aborted the request")
        return response

    async def get(self, replica: Replica, path: str) -> Any:
        """GET the JSON at a path, None if there is none. Raises network errors."""
        async with self._session.get(replica.url + path, timeout=aiohttp.ClientTimeout(total=30.0)) as answer:
            return await answer.json(content_type=None) if answer.status == 200 else None

    async def tokenized(self, replica: Replica, text: str, *, wire: Wire) -> list[int] | None:
        """A text's ids by the server's tokenizer, None if the server does not return them."""
        body = wire.tokenize(text, model=replica.model)
        async with self._session.post(f"{replica.url}/tokenize", json=body) as answer:
            if answer.status != 200:
                return None
            found = await answer.json(content_type=None)
        tokens = found.get("tokens") if isinstance(found, Mapping) else None
        return tokens if isinstance(tokens, list) else None

    async def is_healthy(self, replica: Replica) -> bool:
        timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_S)
        try:
            async with self._session.get(f"{replica.url}/health", timeout=timeout) as answer:
                return answer.status == 200
        except _NETWORK:
            return False

    async def wait_for(self, replicas: Sequence[Replica]) -> list[Replica]:
        """Wait until all `replicas` are healthy, at most `patience_s`; return those that are not."""
        waited = time.monotonic()
        while True:
            found = await asyncio.gather(*(self.is_healthy(replica) for replica in replicas))
            missing = [replica for replica, good in zip(replicas, found, strict=True) if not good]
            if not missing or time.monotonic() - waited > self.patience_s:
                return missing
            await asyncio.sleep(HEALTH_EVERY_S)

    async def _post(self, replica: Replica, path: str, body: Mapping[str, Any]) -> Any:
        try:
            async with self._session.post(replica.url + path, json=body) as answer:
                if answer.status == 200:
                    return await answer.json(content_type=None)
                said = (await answer.text()).strip()[:300]
        except (*_NETWORK, ValueError) as error:
            raise Unanswered(f"{type(error).__name__}: {error}") from error
        if answer.status in AGAIN:
            raise Unanswered(f"status {answer.status}: {said}")
        if answer.status in (400, 413, 422) and TOO_LONG.search(said):
            raise TooLong(said)
        remedy = {
            401: "the server requires a key: engine.token_variable names the environment variable that holds it",
            403: "the server refuses access",
            404: "this is not a server of this kind, or engine.url contains a path (expected none)",
        }.get(
            answer.status, "expected a response; the parameters that this wire sends are in cft/engines/server/wires.py"
        )
        raise EngineError(f"engine.url={replica.url}{path}: status {answer.status}: {said}; {remedy}")

    async def _choose(self, affinity: bytes, *, avoided: Replica | None) -> Replica:
        up = [replica for replica in self.replicas if replica.up]
        if not up:
            up = [await self._first_up()]
        others = [replica for replica in up if replica is not avoided] or up
        ordered = sorted(others, key=lambda replica: hashlib.blake2b(affinity + replica.url.encode()).digest())
        # Consistent hashing with bounded loads (arXiv 1608.01350).
        room = CROWDED * (sum(replica.in_flight for replica in others) + 1) / len(others)
        return next((replica for replica in ordered if replica.in_flight < room), ordered[0])

    async def _examine(self, replica: Replica) -> None:
        """After a failure: do not use the server until it is healthy."""
        if replica.up and not await self.is_healthy(replica) and replica.up:
            replica.up = False
            self._waking[replica] = asyncio.create_task(self._wake(replica))

    async def _wake(self, replica: Replica) -> None:
        while not await self.is_healthy(replica):
            await asyncio.sleep(HEALTH_EVERY_S)
        replica.up = True

    async def _first_up(self) -> Replica:
        waited = time.monotonic()
        while time.monotonic() - waited <= self.patience_s:
            for replica in self.replicas:
                if replica.up:
                    return replica
            await asyncio.sleep(HEALTH_EVERY_S / 5)
        urls = ", ".join(replica.url for replica in self.replicas)
        raise EngineError(
            f"engine.url: none of {urls} has been healthy for {self.patience_s:g} s (GET /health). Computed results are kept; "
            "restart a server, then repeat the command, which resumes"
        )
