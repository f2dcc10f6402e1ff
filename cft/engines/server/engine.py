"""`engine=server`: any number of servers that take and give token ids (vLLM, SGLang, llama-server) as one engine."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cft.engines.errors import EngineError
from cft.engines.request_engine import RequestEngine
from cft.engines.requests import DecodeRequest, DecodeResponse
from cft.engines.server.client import Client, Replica
from cft.engines.server.contract import (
    SAME_PROBE,
    Probe,
    probe,
    probes_differ,
    prompts_for,
    require_ends,
    require_vocabulary,
    wire_of,
)
from cft.engines.server.wires import Wire
from cft.ranges import AboveZero, AtLeastOne, AtLeastZero, Count, require_in_range
from cft.types import TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cft.models.lazy import LazyModel


class ServerEngine(RequestEngine):
    """Decodes on servers; made by `Server`. Every server is held to the contract before it is used.

    Raises:
        EngineError: a server does not answer, is of another kind or model, or does not keep the contract.
    """

    def __init__(
        self,
        urls: Sequence[str],
        eos_ids: Collection[int],
        tokenizer: PreTrainedTokenizerBase,
        *,
        wire: str,
        per_server: int,
        top_logprobs: int,
        timeout_s: float,
        retries: int,
        patience_s: float,
        token: str,
    ) -> None:
        super().__init__("server", eos_ids, in_flight=per_server * len(urls))
        self._tokenizer, self._top = tokenizer, top_logprobs
        self.wire: Wire
        self.client: Client | None = None
        self._facts: dict[str, Any] = {}
        try:
            self.wait(self._begin(urls, wire, timeout_s=timeout_s, retries=retries, patience_s=patience_s, token=token))
        except BaseException:
            self.close()
            raise
        self.ranks_given = self.wire.ranks_given

    async def answer(self, request: DecodeRequest, *, sequence: TokenSequence) -> DecodeResponse | None:
        assert self.client is not None
        prefix = sequence.ids[: sequence.prompt_len].tobytes()
        return await self.client.decode(request, wire=self.wire, affinity=prefix)

    async def end(self) -> None:
        if self.client is not None:
            await self.client.close()

    def facts(self) -> dict[str, Any]:
        return self._facts

    async def _begin(self, urls: Sequence[str], wanted: str, **options: Any) -> None:
        self.client = client = Client(urls, **options)
        if missing := await client.wait_for(client.replicas):
            raise EngineError(
                f"engine.url: {', '.join(replica.url for replica in missing)} gave no sign of health (GET /health) within "
                f"{client.patience_s:g} s; start the server, or leave it out of engine.url"
            )
        first = client.replicas[0]
        self.wire, facts = await wire_of(client, first, wanted=wanted)
        found = await self._checked(first, facts)
        for replica in client.replicas[1:]:
            wire, others = await wire_of(client, replica, wanted=wanted)
            if (wire.name, others["version"]) != (self.wire.name, facts["version"]):
                raise EngineError(
                    f"engine.url: {replica.url} is {wire.name} {others['version']}, {first.url} is {self.wire.name} "
                    f"{facts['version']}; servers of one annotation are of one kind and version"
                )
            gap = probes_differ(found, await self._checked(replica, others))
            if gap > SAME_PROBE:
                raise EngineError(
                    f"engine.url: {replica.url} serves other weights than {first.url}: log-probs after fixed prompts differ by "
                    f"{gap:.2f} nats on average, expected at most {SAME_PROBE}; serve the same model in the same precision"
                )
        self._facts = {
            "name": self.name,
            "wire": self.wire.name,
            "version": facts["version"],
            "dtype": "the server's",
            "device": "the server's",
            "batch_invariant": "not known",
            "probe": found,
        }

    async def _checked(self, replica: Replica, facts: dict[str, Any]) -> Probe:
        assert self.client is not None
        replica.model = facts["model"]
        await require_vocabulary(self.client, replica, wire=self.wire, tokenizer=self._tokenizer)
        prompts = prompts_for(self._tokenizer)
        await require_ends(self.client, replica, wire=self.wire, prompt=prompts[0])
        return await probe(
            self.client, replica, wire=self.wire, prompts=prompts, top=self._top, eos_ids=self.eos_ids
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Servers that serve the model, already started; they take and return token ids.

    Args:
        url: Of each server, without a path: http://host:8000.
        wire: Their kind; auto asks them.
        per_server: Requests under way at each server.
        top_logprobs: Most probable tokens that a server must be able to name; K alternatives and the end tokens need as many.
        timeout_s: For a single request, its waiting at the server included.
        retries: How often a request is sent again (429, 5xx, timeouts, broken connections), after growing pauses.
        patience_s: How long to wait for a server while none is in health.
        token_variable: Environment variable that holds the servers' API key, "" for none.
    """

    name: ClassVar[str] = "server"
    local: ClassVar[bool] = False
    samples: ClassVar[bool] = True
    hashes_weights: ClassVar[bool] = False

    url: Sequence[str]
    wire: Literal["auto", "vllm", "sglang", "llama"] = "auto"
    per_server: AtLeastOne = 128
    top_logprobs: AtLeastOne = 8
    timeout_s: AboveZero = 600.0
    retries: Count = 6
    patience_s: AtLeastZero = 60.0
    token_variable: str = ""

    def __post_init__(self) -> None:
        require_in_range(self)
        if not self.url or not all(one.startswith(("http://", "https://")) for one in self.url):
            raise EngineError(
                f"engine.url={list(self.url)}: expected addresses of servers, engine.url=[http://host:8000,http://other:8000]"
            )

    def __call__(self, model: LazyModel) -> ServerEngine:
        token = os.environ.get(self.token_variable, "") if self.token_variable else ""
        if self.token_variable and not token:
            raise EngineError(
                f"engine.token_variable={self.token_variable}: no such environment variable is set; it holds the servers' key"
            )
        return ServerEngine(
            self.url,
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
