"""Checks of each server at the start, before its tokens are used, and identification of the model that it serves.

kind               detected by the pages that the server has
vocabulary         POST /tokenize of a text that few tokenizers split alike (if the server has this page)
end tokens         a response ends at an id that the request names, and includes it (llama-server: only at the model's own ends)
no BOS             the server reads as many tokens as were sent; checked with every response
no defaults        a greedy token is the most probable one; checked with every response for which log-probs are requested
log-probs          as many per position as alternatives need
weights            the probe: log-probs of the most probable tokens after fixed prompts. It must be equal on all servers, and is
                   checked again when an annotation is resumed
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cft.engines.factory import EngineError
from cft.engines.requests import DecodeRequest, DecodeResponse
from cft.engines.server.client import Client, Replica, TooLong, Unanswered
from cft.engines.server.probe import PROBED, Probe
from cft.engines.server.wires import WIRES, Wire

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT = "def area(r):\n    return 3.14159 * r ** 2  # Fläche ≈ 12,5 cm²\n\n第3章 🙂 \\frac{x_1}{2} <b>it's</b>"


async def wire_of(client: Client, replica: Replica, *, wanted: str) -> tuple[Wire, dict[str, Any]]:
    """Detect the server's kind; returns it with the facts that the server reports. Raises EngineError."""
    wires = WIRES.values() if wanted == "auto" else [WIRES[wanted]]
    for wire in wires:
        about = {path: await client.get(replica, path) for path in wire.about}
        if all(isinstance(page, Mapping) for page in about.values()):
            return wire, wire.facts(about)
    pages = "; ".join(f"{wire.name}: {', '.join(wire.about)}" for wire in wires)
    raise EngineError(
        f"engine.url={replica.url}: not a server of a known kind; expected responses from these pages ({pages}). Check the "
        "URL, which must have no path, or set the kind with engine.wire=vllm|sglang|llama"
    )


async def require_vocabulary(
    client: Client, replica: Replica, *, wire: Wire, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raises EngineError if the server's tokenizer splits a test text differently."""
    found = await client.tokenized(replica, TEXT, wire=wire)
    expected = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    if found is not None and found != expected:
        where = next(
            (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected))
        )
        raise EngineError(
            f"engine.url={replica.url}: its tokenizer differs from model.path's: it made {len(found)} tokens of a text for "
            f"which {len(expected)} were expected, different from token {where} onward ({found[where : where + 3]}, expected "
            f"{expected[where : where + 3]}). Serve the model that model=... names"
        )


async def require_ends(client: Client, replica: Replica, *, wire: Wire, prompt: list[int]) -> None:
    """Raises EngineError if a response does not end at an end token, or does not include it."""
    asked = DecodeRequest(prompt, 2, frozenset(), top=1)
    plain = await _asked(client, replica, asked, wire=wire)
    if not plain.ids:
        raise EngineError(f"engine.url={replica.url}: it decoded nothing after a prompt of {len(prompt)} tokens")
    if not wire.forces_ends:
        return
    first = plain.ids[0]
    ended = await _asked(client, replica, DecodeRequest(prompt, 2, frozenset({first}), top=1), wire=wire)
    if ended.ids != [first] or ended.ended != "stop":
        raise EngineError(
            f"engine.url={replica.url}: asked to end a response at token {first}, which it decodes first, it returned "
            f"{ended.ids} ({ended.ended}); expected [{first}] (stop). A server that cuts the end token off, or ignores "
            "stop_token_ids, cannot be used; a newer version may work"
        )


async def probe(
    client: Client, replica: Replica, *, wire: Wire, prompts: Sequence[list[int]], top: int, eos_ids: frozenset[int]
) -> Probe:
    """The most probable next tokens after each prompt. Raises EngineError if the server returns fewer than `top`."""
    asked = (DecodeRequest(ids, 1, eos_ids, top=top) for ids in prompts)
    found = await asyncio.gather(*(_asked(client, replica, request, wire=wire) for request in asked))
    probes: Probe = []
    for response in found:
        best = sorted(response.decoded[0].top.items(), key=lambda item: (-item[1], item[0]))
        if len(best) < top:
            raise EngineError(
                f"engine.url={replica.url}: {top} most probable tokens were requested (engine.top_logprobs), {len(best)} came; "
                f"start the server with --max-logprobs {top} or more"
            )
        probes.append([[token, round(logprob, 4)] for token, logprob in best[:PROBED]])
    return probes


async def _asked(client: Client, replica: Replica, request: DecodeRequest, *, wire: Wire) -> DecodeResponse:
    try:
        return await client.decode_at(replica, request, wire=wire)
    except (TooLong, Unanswered) as error:
        raise EngineError(f"engine.url={replica.url}: {error} (a prompt of {len(request.ids)} tokens)") from error
