"""`engine=server`: any number of servers that take and return token ids, as one engine.

wires       request and response formats of each kind of server, as pure functions
client      sends a request to one of the servers, with retries
contract    checks of a server before its tokens are used
engine      forks in, completions out
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cft.engines.factory import EngineError
from cft.ranges import AboveZero, AtLeastOne, AtLeastZero, Count, require_in_range

if TYPE_CHECKING:
    from cft.engines.server.engine import ServerEngine
    from cft.models.lazy import LazyModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Running servers that serve the model; they take and return token ids.

    Args:
        url: URL of each server, without a path: http://host:8000.
        wire: Kind of the servers; auto detects it.
        per_server: Maximum number of requests in flight per server.
        top_logprobs: Number of most probable tokens that a server must be able to return: alternatives, end tokens and padding
            ids together.
        timeout_s: Timeout of a single request in seconds, queueing at the server included.
        retries: How often a request is retried (429, 5xx, timeouts, broken connections), with growing pauses.
        patience_s: How long to wait, in seconds, while no server is healthy.
        token_variable: Environment variable that holds the servers' API key, "" for none.
    """

    name: ClassVar[str] = "server"
    local: ClassVar[bool] = False
    samples: ClassVar[bool] = True
    adjusts: ClassVar[bool] = False
    hashes_weights: ClassVar[bool] = False

    url: Sequence[str] | str
    wire: Literal["auto", "vllm", "sglang", "llama"] = "auto"
    per_server: AtLeastOne = 128
    top_logprobs: AtLeastOne = 8
    timeout_s: AboveZero = 600.0
    retries: Count = 6
    patience_s: AtLeastZero = 60.0
    token_variable: str = ""

    def __post_init__(self) -> None:
        require_in_range(self)
        if not self.urls or not all(url.startswith(("http://", "https://")) for url in self.urls):
            raise EngineError(
                f"engine.url={self.url}: expected URLs of servers, engine.url=[http://host:8000,http://other:8000]"
            )

    @property
    def urls(self) -> tuple[str, ...]:
        """The URLs without duplicates and trailing slashes."""
        urls = [self.url] if isinstance(self.url, str) else self.url
        return tuple(dict.fromkeys(url.rstrip("/") for url in urls))

    def __call__(self, model: LazyModel) -> ServerEngine:
        from cft.engines.server.engine import ServerEngine

        token = os.environ.get(self.token_variable, "") if self.token_variable else ""
        if self.token_variable and not token:
            raise EngineError(
                f"engine.token_variable={self.token_variable}: this environment variable is not set; expected the API key"
            )
        return ServerEngine(
            self.urls,
            model.facts.eos_ids,
            model.tokenizer,
            wire=self.wire,
            per_server=self.per_server,
            top_logprobs=self.top_logprobs,
            timeout_s=self.timeout_s,
            retries=self.retries,
            patience_s=self.patience_s,
            token=token,
        )
