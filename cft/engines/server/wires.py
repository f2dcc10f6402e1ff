"""Requests and responses of each kind of server, as pure functions of JSON.

    vllm      POST /v1/completions with ids as prompt and `return_token_ids`; also works with other servers of this API
    sglang    POST /generate
    llama     POST /completion of llama.cpp's llama-server

Each request sets every sampling parameter for which a server may have a default of its own (its --generation-config, its
command line). Only token ids are sent and read, never text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from cft.engines.requests import DecodeRequest, DecodeResponse, Ranked

Json = Mapping[str, Any]
_NEUTRAL = {"top_p": 1.0, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class WireError(Exception):
    """A response in an unexpected format; the message says what came and what was expected."""


class Wire(Protocol):
    """One kind of server.

    path: where requests are sent.
    about: pages (GET) on which the server describes itself; they identify its kind.
    ranks_given: whether it returns log-probs of given tokens, not only of decoded ones.
    forces_ends: whether it ends a response at the ids in the request; otherwise at the end tokens of its own model file.
    """

    name: ClassVar[str]
    path: ClassVar[str]
    about: ClassVar[tuple[str, ...]]
    ranks_given: ClassVar[bool]
    forces_ends: ClassVar[bool]

    def facts(self, about: Mapping[str, Json]) -> dict[str, Any]:
        """Version, model and context from the responses at `about`, by path ("" or 0 if the server does not say)."""
        ...

    def body(self, request: DecodeRequest, *, model: str) -> dict[str, Any]: ...

    def read(self, payload: Json, request: DecodeRequest) -> DecodeResponse:
        """Raises WireError."""
        ...

    def tokenize(self, text: str, *, model: str) -> dict[str, Any]:
        """Body of POST /tokenize for a text, without added special tokens."""
        ...


class VllmWire:
    name: ClassVar[str] = "vllm"
    path: ClassVar[str] = "/v1/completions"
    about: ClassVar[tuple[str, ...]] = ("/version", "/v1/models")
    ranks_given: ClassVar[bool] = True
    forces_ends: ClassVar[bool] = True

    def facts(self, about: Mapping[str, Json]) -> dict[str, Any]:
        models = [entry for entry in about["/v1/models"].get("data", ()) if not entry.get("parent")]  # no adapters
        first = models[0] if models else {}
        return {
            "version": str(about["/version"].get("version", "")),
            "model": str(first.get("id", "")),
            "context": int(first.get("max_model_len") or 0),
        }

    def body(self, request: DecodeRequest, *, model: str) -> dict[str, Any]:
        sampling = request.sampling
        return {
            "model": model,
            "prompt": request.ids,
            "max_tokens": request.limit,
            "temperature": sampling.temperature,
            **_NEUTRAL,
            "top_p": sampling.top_p,
            "top_k": 0,
            "repetition_penalty": 1.0,
            "n": 1,
            "seed": request.seed,
            "stop_token_ids": sorted(request.eos_ids),
            "ignore_eos": True,  # only stop_token_ids end a response
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "logprobs": request.top or None,
            "prompt_logprobs": request.top if request.score_from is not None else None,
            "stream": False,
        }

    def read(self, payload: Json, request: DecodeRequest) -> DecodeResponse:
        choices = _field(payload, "choices", list)
        if len(choices) != 1:
            raise WireError(f"{len(choices)} choices, expected 1")
        choice: Json = choices[0]
        ids = _ids(choice.get("token_ids"), "choices[0].token_ids", remedy="it needs return_token_ids (vLLM 0.10.2)")
        seen = choice.get("prompt_token_ids")
        if seen is not None:
            _same_prompt(len(seen), request, bos=seen[: len(seen) - len(request.ids)])
        decoded = []
        if request.top and ids:
            given = _field(choice, "logprobs", dict)
            own, tops = _field(given, "token_logprobs", list), _field(given, "top_logprobs", list)
            _one_each(own, ids, "logprobs.token_logprobs")
            decoded = [
                Ranked(float(logprob), {_id_of(name): float(value) for name, value in top.items()})
                for logprob, top in zip(own, tops, strict=True)
            ]
        prompt = []
        if request.score_from is not None:
            given = choice.get("prompt_logprobs")
            given = payload.get("prompt_logprobs") if given is None else given
            if not isinstance(given, list) or len(given) != len(request.ids):
                raise WireError(f"no prompt_logprobs of {len(request.ids)} tokens: {_short(given)}")
            for token, position in zip(request.ids[request.score_from :], given[request.score_from :], strict=True):
                top = {int(name): float(entry["logprob"]) for name, entry in (position or {}).items()}
                if token not in top:
                    raise WireError(f"prompt_logprobs without the prompt's own token {token}: {_short(position)}")
                prompt.append(Ranked(top[token], top))
        return DecodeResponse(ids, _ended(choice.get("finish_reason")), decoded, prompt)

    def tokenize(self, text: str, *, model: str) -> dict[str, Any]:
        return {"model": model, "prompt": text, "add_special_tokens": False}


class SglangWire:
    name: ClassVar[str] = "sglang"
    path: ClassVar[str] = "/generate"
    about: ClassVar[tuple[str, ...]] = ("/get_model_info", "/get_server_info")
    ranks_given: ClassVar[bool] = True
    forces_ends: ClassVar[bool] = True

    def facts(self, about: Mapping[str, Json]) -> dict[str, Any]:
        server = about["/get_server_info"]
        return {
            "version": str(server.get("version", "")),
            "model": str(about["/get_model_info"].get("model_path", "")),
            "context": int(server.get("context_length") or 0),
        }

    def body(self, request: DecodeRequest, *, model: str) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "input_ids": request.ids,
            "sampling_params": {
                "temperature": sampling.temperature,
                **_NEUTRAL,
                "top_p": sampling.top_p,
                "top_k": -1,
                "repetition_penalty": 1.0,
                "max_new_tokens": request.limit,
                "stop_token_ids": sorted(request.eos_ids),
                "ignore_eos": False,  # true would ignore stop_token_ids, too
                "skip_special_tokens": False,
                "no_stop_trim": True,
            },
            "stream": False,
        }
        if sampling.temperature:
            body["sampling_params"]["sampling_seed"] = request.seed
        if request.top:
            # The first returned position has no log-prob, so one more is requested.
            start = -1 if request.score_from is None else request.score_from - 1
            body |= {"return_logprob": True, "top_logprobs_num": request.top, "logprob_start_len": start}
        return body

    def read(self, payload: Json, request: DecodeRequest) -> DecodeResponse:
        meta = _field(payload, "meta_info", dict)
        ids = _ids(payload.get("output_ids"), "output_ids", remedy="it needs a server of 2025 or newer")
        if isinstance(seen := meta.get("prompt_tokens"), int):
            _same_prompt(seen, request)
        reason = meta.get("finish_reason")
        decoded = self._ranked(meta, "output", ids) if request.top and ids else []
        prompt = []
        if request.score_from is not None:
            prompt = self._ranked(meta, "input", request.ids[request.score_from :], skipped=1)
        return DecodeResponse(ids, _ended(reason.get("type") if isinstance(reason, dict) else reason), decoded, prompt)

    @staticmethod
    def _ranked(meta: Json, side: str, ids: Sequence[int], *, skipped: int = 0) -> list[Ranked]:
        own = _field(meta, f"{side}_token_logprobs", list)[skipped:]
        tops = _field(meta, f"{side}_top_logprobs", list)[skipped:]
        _one_each(own, ids, f"meta_info.{side}_token_logprobs")
        if [entry[1] for entry in own] != list(ids):
            raise WireError(
                f"meta_info.{side}_token_logprobs is of other tokens: {_short([entry[1] for entry in own])}"
            )
        return [
            Ranked(float(entry[0]), {int(token): float(logprob) for logprob, token, *_ in top})
            for entry, top in zip(own, tops, strict=True)
        ]

    def tokenize(self, text: str, *, model: str) -> dict[str, Any]:
        return {"model": model, "prompt": text, "add_special_tokens": False}


class LlamaWire:
    name: ClassVar[str] = "llama"
    path: ClassVar[str] = "/completion"
    about: ClassVar[tuple[str, ...]] = ("/props",)
    ranks_given: ClassVar[bool] = False
    forces_ends: ClassVar[bool] = False

    def facts(self, about: Mapping[str, Json]) -> dict[str, Any]:
        props = about["/props"]
        settings = props.get("default_generation_settings") or {}
        return {
            "version": str(props.get("build_info", "")),
            "model": str(props.get("model_path", "")),
            "context": int(settings.get("n_ctx") or 0),
        }

    def body(self, request: DecodeRequest, *, model: str) -> dict[str, Any]:
        sampling = request.sampling
        greedy = sampling.temperature == 0
        return {
            "prompt": request.ids,
            "n_predict": request.limit,
            "temperature": sampling.temperature,
            **_NEUTRAL,
            "top_p": sampling.top_p,
            "top_k": 1 if greedy else 0,
            "samplers": ["top_k"] if greedy else ["temperature", "top_p"],
            "typical_p": 1.0,
            "repeat_penalty": 1.0,
            "dry_multiplier": 0.0,
            "xtc_probability": 0.0,
            "mirostat": 0,
            "seed": request.seed,
            "stop": [],
            "ignore_eos": False,
            "return_tokens": True,
            "n_probs": request.top,
            "post_sampling_probs": False,
            "cache_prompt": True,
            "stream": False,
        }

    def read(self, payload: Json, request: DecodeRequest) -> DecodeResponse:
        ids = _ids(payload.get("tokens"), "tokens", remedy="it needs return_tokens (llama.cpp of 2025 or newer)")
        if isinstance(seen := payload.get("tokens_evaluated"), int) and not payload.get("truncated"):
            _same_prompt(seen, request)
        decoded = []
        if request.top and ids:
            given = _field(payload, "completion_probabilities", list)
            _one_each(given, ids, "completion_probabilities")
            if [entry.get("id") for entry in given] != ids:
                raise WireError("completion_probabilities is of other tokens than `tokens`")
            decoded = [
                Ranked(float(e["logprob"]), {int(o["id"]): float(o["logprob"]) for o in e["top_logprobs"]})
                for e in given
            ]
        stop = payload.get("stop_type")
        ended = {"eos": "stop", "word": "stop", "limit": "length"}.get(str(stop), "abort")
        # The server may decode a token or two beyond the limit if the last ones are an incomplete character.
        return DecodeResponse(ids[: request.limit], _ended(ended), decoded[: request.limit])

    def tokenize(self, text: str, *, model: str) -> dict[str, Any]:
        return {"content": text, "add_special": False}


_ALL: tuple[Wire, ...] = (VllmWire(), SglangWire(), LlamaWire())
WIRES = {wire.name: wire for wire in _ALL}


def _field(payload: Json, name: str, kind: type) -> Any:
    value = payload.get(name)
    if not isinstance(value, kind):
        raise WireError(f"no {name} in {_short(payload)}")
    return value


def _ids(value: object, name: str, *, remedy: str) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(token, int) for token in value):
        raise WireError(f"no token ids in {name} ({_short(value)}): {remedy}")
    return value


def _same_prompt(seen: int, request: DecodeRequest, *, bos: Sequence[int] = ()) -> None:
    if seen != len(request.ids):
        added = f" (it begins with {list(bos)})" if bos else ""
        raise WireError(
            f"it read a prompt of {seen} tokens, {len(request.ids)} were sent{added}: a server that adds a BOS token or "
            "truncates prompts conditions on another text; turn that off"
        )


def _one_each(values: Sequence[object], ids: Sequence[int], name: str) -> None:
    if len(values) != len(ids):
        raise WireError(f"{len(values)} entries in {name}, expected one for each of {len(ids)} tokens")


def _ended(reason: object) -> Any:
    """ "stop", "length" or "abort"."""
    return reason if reason in ("stop", "length") else "abort"


def _id_of(name: str) -> int:
    """token_id:123 -> 123"""
    prefix, _, digits = name.rpartition(":")
    if prefix != "token_id":
        raise WireError(f"logprobs.top_logprobs names {name!r}, expected token_id:<n> (return_tokens_as_token_ids)")
    return int(digits)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."
