"""A server that answers each protocol from the reference engine, and fails on demand."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from cft.annotation.counterfactual import ListSource
from cft.engines.reference import ReferenceEngine
from cft.types import Budget, Fork, Sampling, TokenSequence, TopTokens

# Failures of a request. bos: a token is prepended to the prompt. trim: the end token is left out. penalty: the second most
# probable token is chosen. old: no ids in the response.
MISCHIEFS = ("400", "429", "500", "503", "abort", "bos", "hang", "old", "penalty", "reset", "too long", "trim")
OVERTAKEN = 8
Mischief = Callable[[int, dict[str, Any]], str]


def well_behaved(number: int, body: dict[str, Any]) -> str:
    del number, body
    return ""


class ScriptedServer(ThreadingHTTPServer):
    """A server with one protocol and one model.

    mischief: (number of the request, its body) -> one of MISCHIEFS, "slow", "die" or "". tokenize: text to ids, None for a
    server without /tokenize. decoded: number of answered requests.
    """

    daemon_threads = True
    request_queue_size = 256  # the default of 5 makes clients connect again after a second

    def __init__(
        self,
        model: Any,
        *,
        wire: str = "vllm",
        mischief: Mischief = well_behaved,
        tokenize: Callable[[str], list[int]] | None = None,
        max_logprobs: int = 20,
        context: int = 256,
        ends: Sequence[int] = (),
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.wire, self.mischief, self.tokenize = model, wire, mischief, tokenize
        self.max_logprobs, self.context, self.ends = max_logprobs, context, frozenset(ends)
        self.healthy, self.number, self.decoded, self.cancelled = True, 0, 0, 0
        self.bodies: list[dict[str, Any]] = []
        self.lock = threading.Lock()  # the model's
        self._sockets: list[Any] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *args: object) -> None:
        self.die()

    def get_request(self) -> tuple[Any, Any]:
        found = super().get_request()
        self._sockets.append(found[0])
        return found

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore broken connections, which are intended."""

    def die(self) -> None:
        """Like kill -9: no more answers, and connections break."""
        self.healthy = False
        threading.Thread(target=self.shutdown, daemon=True).start()
        self.server_close()
        for socket in self._sockets:
            with contextlib.suppress(OSError):
                socket.shutdown(2)

    def continued(self, ids: list[int], limit: int, ends: frozenset[int], sampling: Sampling) -> tuple[list[int], str]:
        def decode() -> tuple[list[int], str]:
            fork = Fork(TokenSequence(np.asarray(ids, dtype=np.int32), len(ids)), len(ids), None, sampling, 0)
            engine = ReferenceEngine(self.model, ends or {-1})
            ((_, completion),) = engine.run(ListSource([fork]), budget=Budget(limit))
            return completion.ids.tolist(), completion.finish

        return self._once((tuple(ids), limit, ends, sampling), decode)

    def ranks(self, ids: list[int], *, start: int, k: int) -> TopTokens:
        sequence = TokenSequence(np.asarray(ids, dtype=np.int32), start)
        return self._once(
            (tuple(ids), start, k, "ranks"), lambda: ReferenceEngine(self.model, {-1}).score(sequence, k=k)
        )

    def _once(self, question: Any, work: Callable[[], Any]) -> Any:
        """Answers shared by the servers of one model, because tests repeat requests."""
        with self.lock:
            answers = self.model.__dict__.setdefault("answers", {})
            if question not in answers:
                answers[question] = work()
            return answers[question]


class Letters:
    """A tokenizer for the random model: one token per letter."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % 57 for letter in text][:40]}


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        server = self.server
        pages: dict[str, dict[str, Any]] = {
            "vllm": {
                "/version": {"version": "1.2.3"},
                "/v1/models": {"data": [{"id": "tiny", "max_model_len": server.context}]},
            },
            "sglang": {
                "/get_model_info": {"model_path": "tiny"},
                "/get_server_info": {"version": "1.2.3", "context_length": server.context},
            },
            "llama": {
                "/props": {
                    "build_info": "b123",
                    "model_path": "tiny",
                    "default_generation_settings": {"n_ctx": server.context},
                },
                "/v1/models": {"data": [{"id": "tiny"}]},
            },
        }
        if self.path == "/health":
            return self._send(200 if server.healthy else 503, {})
        page = pages[server.wire].get(self.path)
        return self._send(404 if page is None else 200, page or {})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            if server.tokenize is None:
                return self._send(404, {})
            return self._send(200, {"tokens": server.tokenize(body.get("prompt", body.get("content")))})
        paths = {"vllm": "/v1/completions", "sglang": "/generate", "llama": "/completion"}
        if self.path != paths[server.wire]:
            return self._send(404, {"error": f"no page {self.path}"})
        server.number += 1
        server.bodies.append(body)
        mischief = server.mischief(server.number, body)
        if mischief in ("429", "500", "503"):
            return self._send(int(mischief), {"error": "not now"})
        if mischief == "400":
            return self._send(400, {"error": "unknown parameter"})
        if mischief == "too long":
            return self._send(400, {"error": "maximum context length is 256 tokens"})
        if mischief == "reset":
            self.close_connection = True
            return self.connection.close()
        if mischief == "die":
            return server.die()
        if mischief == "hang":
            time.sleep(30)
        if mischief == "slow":  # until others have overtaken it
            others, started = server.decoded, time.monotonic()
            while server.decoded < others + OVERTAKEN and time.monotonic() - started < 10:
                time.sleep(0.005)
        answer = {"vllm": _vllm, "sglang": _sglang, "llama": _llama}[server.wire](server, body, mischief)
        if isinstance(answer, str):
            return self._send(400, {"error": answer})
        server.decoded += 1
        return self._send(200, answer)

    def _send(self, status: int, payload: dict[str, Any]) -> None:
        data = json.dumps(payload).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.server.cancelled += 1


def _decoded(
    server: ScriptedServer, ids: list[int], limit: int, ends: frozenset[int], mischief: str, how: dict[str, Any]
) -> tuple[list[int], str, list[int]]:
    """Token ids, finish reason, and the prompt as read. how: the part of the request with temperature, top_p and seed."""
    read = [1, *ids] if mischief == "bos" else ids
    seed = how.get("seed", how.get("sampling_seed", 0))
    found, finish = server.continued(read, limit, ends, Sampling(how["temperature"], how["top_p"], seed))
    if mischief == "penalty" and found:
        second = server.ranks([*read, found[0]], start=len(read), k=2).top_ids_RK[0, 1]
        found, finish = [int(second), *found[1:]], "length"
    if mischief == "trim" and finish == "stop":
        found = found[:-1]
    return found, "abort" if mischief == "abort" else finish, read


def _vllm(server: ScriptedServer, body: dict[str, Any], mischief: str) -> dict[str, Any] | str:
    ids, top = body["prompt"], body["logprobs"] or body["prompt_logprobs"] or 0
    if top > server.max_logprobs:
        return f"Requested sample logprobs of {top}, which is greater than max allowed: {server.max_logprobs}"
    if len(ids) + body["max_tokens"] > server.context:
        return f"This model's maximum context length is {server.context} tokens"
    found, finish, read = _decoded(server, ids, body["max_tokens"], frozenset(body["stop_token_ids"]), mischief, body)
    choice: dict[str, Any] = {"token_ids": found, "finish_reason": finish, "prompt_token_ids": read}
    if body["logprobs"] and found:
        ranks = server.ranks([*read, *found], start=len(read), k=top)
        choice["logprobs"] = {
            "token_logprobs": ranks.logprob_R.tolist(),
            "top_logprobs": [
                {f"token_id:{t}": p for t, p in {**dict(zip(i, v, strict=True)), own: mine}.items()}
                for i, v, own, mine in zip(
                    ranks.top_ids_RK.tolist(),
                    ranks.top_logprob_RK.tolist(),
                    found,
                    ranks.logprob_R.tolist(),
                    strict=True,
                )
            ],
        }
    if body["prompt_logprobs"]:
        ranks = server.ranks(ids, start=1, k=top)
        choice["prompt_logprobs"] = [None] + [
            {str(t): {"logprob": p} for t, p in {**dict(zip(i, v, strict=True)), own: mine}.items()}
            for i, v, own, mine in zip(
                ranks.top_ids_RK.tolist(), ranks.top_logprob_RK.tolist(), ids[1:], ranks.logprob_R.tolist(), strict=True
            )
        ]
    if mischief == "old":
        del choice["token_ids"]
    return {"choices": [choice]}


def _sglang(server: ScriptedServer, body: dict[str, Any], mischief: str) -> dict[str, Any] | str:
    ids, how = body["input_ids"], body["sampling_params"]
    if len(ids) + how["max_new_tokens"] > server.context:
        return f"Requested token count exceeds the model's maximum context length of {server.context}"
    found, finish, read = _decoded(server, ids, how["max_new_tokens"], frozenset(how["stop_token_ids"]), mischief, how)
    meta: dict[str, Any] = {"finish_reason": {"type": finish}, "prompt_tokens": len(read)}
    if body.get("return_logprob"):
        top, start = body["top_logprobs_num"], body["logprob_start_len"]
        parts = {"output": (found, server.ranks([*read, *found], start=len(read), k=top), 0)} if found else {}
        if start >= 0:
            parts["input"] = (ids[start + 1 :], server.ranks(ids, start=start + 1, k=top), 1)
        for side, (tokens, ranks, blank) in parts.items():
            own, tops = (
                ranks.logprob_R.tolist(),
                zip(ranks.top_ids_RK.tolist(), ranks.top_logprob_RK.tolist(), strict=True),
            )
            first = [[None, ids[start], None]] * blank
            meta[f"{side}_token_logprobs"] = first + [[p, t, None] for p, t in zip(own, tokens, strict=True)]
            meta[f"{side}_top_logprobs"] = [None] * blank + [
                [[p, t, None] for t, p in zip(i, v, strict=True)] for i, v in tops
            ]
    return {"text": "", "meta_info": meta, **({} if mischief == "old" else {"output_ids": found})}


def _llama(server: ScriptedServer, body: dict[str, Any], mischief: str) -> dict[str, Any] | str:
    ids = body["prompt"]
    if len(ids) >= server.context:
        return "the request exceeds the available context size"
    limit = min(body["n_predict"], server.context - len(ids))  # it stops where its context is full
    found, finish, read = _decoded(server, ids, limit, server.ends, mischief, body)
    answer: dict[str, Any] = {
        "tokens_evaluated": len(read),
        "truncated": False,
        "stop_type": {"stop": "eos", "length": "limit"}.get(finish, "none"),
        **({} if mischief == "old" else {"tokens": found}),
    }
    if body["n_probs"] and found:
        ranks = server.ranks([*read, *found], start=len(read), k=body["n_probs"])
        answer["completion_probabilities"] = [
            {"id": own, "logprob": mine, "top_logprobs": [{"id": t, "logprob": p} for t, p in zip(i, v, strict=True)]}
            for own, mine, i, v in zip(
                found, ranks.logprob_R.tolist(), ranks.top_ids_RK.tolist(), ranks.top_logprob_RK.tolist(), strict=True
            )
        ]
    return answer
