"""`engine=server`: any number of servers that take and return token ids (vLLM, SGLang, llama-server) as one engine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from cft.engines.factory import EngineError
from cft.engines.request_engine import RequestEngine
from cft.engines.requests import DecodeRequest, DecodeResponse
from cft.engines.server.client import Client, Replica
from cft.engines.server.contract import probe, require_ends, require_vocabulary, wire_of
from cft.engines.server.probe import SAME_PROBE, Probe, probes_differ, prompts_for
from cft.engines.server.wires import Wire
from cft.types import TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ServerEngine(RequestEngine):
    """Decodes on servers; made by `Server`. Every server is checked (`cft/engines/server/contract.py`) before it is used.

    Raises:
        EngineError: A server does not respond, has another kind or model than the others, or fails a check.
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
                f"engine.url: {', '.join(replica.url for replica in missing)} did not become healthy (GET /health) within "
                f"{client.patience_s:g} s; start the server, or remove it from engine.url"
            )
        first = client.replicas[0]
        self.wire, facts = await wire_of(client, first, wanted=wanted)
        found = await self._checked(first, facts)
        for replica in client.replicas[1:]:
            wire, others = await wire_of(client, replica, wanted=wanted)
            if (wire.name, others["version"]) != (self.wire.name, facts["version"]):
                raise EngineError(
                    f"engine.url: {replica.url} is {wire.name} {others['version']}, {first.url} is {self.wire.name} "
                    f"{facts['version']}; all servers of an annotation must have the same kind and version"
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
        return await probe(self.client, replica, wire=self.wire, prompts=prompts, top=self._top, eos_ids=self.eos_ids)
