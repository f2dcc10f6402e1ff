"""The engines that tests/engines/test_conformance.py runs; a case is skipped if its package is not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cft.engines.continuous import ContinuousEngine
from cft.engines.reference import ReferenceEngine
from cft.engines.server.engine import ServerEngine
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.engines.vllm import VllmEngine
from cft.types import Engine
from tests.scripted_server import Letters, ScriptedServer


@dataclass(eq=False)
class Subject:
    """Inputs to build an engine: a small random model with its end tokens, and a folder to save it in."""

    model: PreTrainedModel
    eos_ids: tuple[int, ...]
    scratch: Path

    @cached_property
    def folder(self) -> Path:
        """The model as a Hugging Face folder without a tokenizer, for engines that load the model themselves."""
        assert self.model.generation_config is not None
        self.model.generation_config.eos_token_id = list(self.eos_ids)
        self.model.save_pretrained(self.scratch / "model")
        return self.scratch / "model"


@dataclass(frozen=True)
class EngineCase:
    """An engine to test.

    make: builds the engine with a maximum number of concurrent rows. package: required package, "" for none.

    samples: whether it supports sampled forks. starve: limits the KV cache to a number of tokens, None if the engine has no
    KV cache of its own.
    """

    name: str
    make: Callable[[Subject, int], Engine]
    package: str = ""
    samples: bool = True
    starve: Callable[[Any, int], None] | None = None

    @property
    def missing(self) -> bool:
        return bool(self.package) and importlib.util.find_spec(self.package) is None


def _bytes_a_token(model: PreTrainedModel) -> int:
    config: Any = model.config
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize


def _starve_shared_prefix(engine: SharedPrefixEngine, tokens: int) -> None:
    engine.kv_budget_bytes = tokens * _bytes_a_token(engine.model)


def _starve_continuous(engine: ContinuousEngine, tokens: int) -> None:
    engine.num_blocks = tokens // engine.page_size


def _server(subject: Subject, rows: int) -> ServerEngine:
    """An engine for a server that runs until the process ends."""
    server = ScriptedServer(subject.model, context=subject.model.config.max_position_embeddings)
    return ServerEngine(
        [server.url],
        subject.eos_ids,
        Letters(),  # type: ignore[arg-type]
        wire="auto",
        per_server=rows,
        top_logprobs=6,
        timeout_s=60.0,
        retries=3,
        patience_s=10.0,
        token="",
    )


def _vllm(subject: Subject, rows: int) -> VllmEngine:
    settings = {
        "model": str(subject.folder),
        "dtype": "float32",
        "generation_config": "vllm",
        "skip_tokenizer_init": True,
        "max_model_len": subject.model.config.max_position_embeddings,
        "max_num_seqs": rows,
        "tensor_parallel_size": 1,
        "enforce_eager": True,
        "disable_log_stats": True,
    }
    return VllmEngine(settings, subject.eos_ids, device="cpu")


ENGINES = {
    case.name: case
    for case in (
        EngineCase("reference", lambda subject, rows: ReferenceEngine(subject.model, subject.eos_ids)),
        EngineCase(
            "shared_prefix",
            lambda subject, rows: SharedPrefixEngine(subject.model, subject.eos_ids, max_rows=rows),
            starve=_starve_shared_prefix,
        ),
        EngineCase(
            "continuous",
            lambda subject, rows: ContinuousEngine(subject.model, subject.eos_ids, max_requests=rows, page_size=8),
            samples=False,
            starve=_starve_continuous,
        ),
        EngineCase("server", _server),
        EngineCase("vllm", _vllm, package="vllm"),
    )
}
