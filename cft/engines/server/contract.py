"""What a server must do before a token of it is used, and which model it serves. Each server is asked at the start.

its kind           told by the pages it has
its vocabulary     POST /tokenize of a text that few tokenizers split alike (where the server has it)
ends               a response ends at an id that we send, and keeps it (llama-server: at each end of the model, forced)
no BOS             it reads as many tokens as it was sent; checked with every response
no defaults        a greedy token is the most probable one; checked with every response whose log-probs are asked for
log-probs          as many as alternatives need
weights            log-probs of the most probable tokens after fixed prompts: the probe, equal on all servers, and again
                   when an annotation is resumed
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
    """The server's kind and what it says of itself. Raises EngineError."""
    wires = WIRES.values() if wanted == "auto" else [WIRES[wanted]]
    for wire in wires:
        about = {path: await client.get(replica, path) for path in wire.about}
        if all(isinstance(page, Mapping) for page in about.values()):
            return wire, wire.facts(about)
    pages = "; ".join(f"{wire.name}: {', '.join(wire.about)}" for wire in wires)
    raise EngineError(
        f"engine.url={replica.url}: not a server of a known kind; expected pages that answer ({pages}). Check the address, "
        "which is without a path, or name the kind with engine.wire=vllm|sglang|llama"
    )


async def require_vocabulary(
    client: Client, replica: Replica, *, wire: Wire, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raises EngineError where the server's tokenizer splits a text in another way."""
    found = await client.tokenized(replica, TEXT, wire=wire)
    expected = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    if found is not None and found != expected:
        where = next(
            (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected))
        )
        raise EngineError(
            f"engine.url={replica.url}: its tokenizer is another one than model.path's: it made {len(found)} tokens of a text "
            f"where {len(expected)} were expected, different from token {where} on ({found[where : where + 3]} beside "
            f"{expected[where : where + 3]}). Serve the model that model=... names"
        )


async def require_ends(client: Client, replica: Replica, *, wire: Wire, prompt: list[int]) -> None:
    """Raises EngineError where a response does not end at an end token, or loses it."""
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
            f"engine.url={replica.url}: asked to end a response at token {first}, which it decodes first, it gave {ended.ids} "
            f"({ended.ended}); expected [{first}] (stop). A server that cuts the end token off, or ignores stop_token_ids, "
            "cannot be used; a newer version may"
        )


async def probe(
    client: Client, replica: Replica, *, wire: Wire, prompts: Sequence[list[int]], top: int, eos_ids: frozenset[int]
) -> Probe:
    """The most probable next tokens of each prompt. Raises EngineError where fewer than `top` of them are to be had."""
    asked = (DecodeRequest(ids, 1, eos_ids, top=top) for ids in prompts)
    found = await asyncio.gather(*(_asked(client, replica, request, wire=wire) for request in asked))
    probes: Probe = []
    for response in found:
        best = sorted(response.decoded[0].top.items(), key=lambda item: (-item[1], item[0]))
        if len(best) < top:
            raise EngineError(
                f"engine.url={replica.url}: {top} most probable tokens were asked for (engine.top_logprobs), {len(best)} came; "
                f"start the server with --max-logprobs {top} or more"
            )
        probes.append([[token, round(logprob, 4)] for token, logprob in best[:PROBED]])
    return probes


async def _asked(client: Client, replica: Replica, request: DecodeRequest, *, wire: Wire) -> DecodeResponse:
    try:
        return await client.decode_at(replica, request, wire=wire)
    except (TooLong, Unanswered) as error:
        raise EngineError(f"engine.url={replica.url}: {error} to a prompt of {len(request.ids)} tokens") from error
