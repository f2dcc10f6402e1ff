"""Small fakes for tests: a random Llama, rows with given evidence, an engine that follows a script."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cft.types import AnnotatedResponse, Budget, Completion, Fork, ForkSource, Key, TokenSequence, TopTokens


def random_llama(*, vocab: int = 60, seed: int = 0, spread: float = 0.4, **config: Any) -> LlamaForCausalLM:
    """Two layers, width 32. A large `spread` of the weights gives varied choices with clear margins."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": spread,
        "attention_dropout": 0.0,
    }
    return LlamaForCausalLM(LlamaConfig(**{**options, **config})).eval()


def exact_llama(**options: Any) -> LlamaForCausalLM:
    """The same model in float64, for tests that run `in_float64`."""
    return random_llama(**options).double()


def row(
    response_ids: Sequence[int],
    *,
    outcomes: Sequence[Sequence[int]] | None = None,
    prompt_ids: Sequence[int] = (1, 2, 3),
    number: int = 0,
    response: str = "",
    char_span: Sequence[Sequence[int]] | None = None,
    k: int = 2,
) -> AnnotatedResponse:
    """An annotated response with the given evidence; by default, every alternative is wrong."""
    length = len(response_ids)
    outcome = np.zeros((length, k), np.int8) if outcomes is None else np.asarray(outcomes, np.int8)
    k = outcome.shape[1]
    return AnnotatedResponse(
        problem_id=f"p{number}",
        response_id=f"r{number}",
        problem=f"question {number}",
        answer="1",
        response=response,
        finish="stop",
        prompt_ids=np.asarray(prompt_ids, np.int32),
        response_ids=np.asarray(response_ids, np.int32),
        char_span=np.zeros((length, 2), np.int32) if char_span is None else np.asarray(char_span, np.int32),
        logprob=np.full(length, -0.5, np.float32),
        entropy=np.full(length, 0.7, np.float32),
        alt_ids=np.tile(np.arange(10, 10 + k, dtype=np.int32), (length, 1)),
        alt_logprob=np.full((length, k), -1.5, np.float32),
        alt_answer=[["7"] * k for _ in range(length)],
        alt_tokens=np.full((length, k), 4, np.int32),
        alt_outcome=outcome,
        replay_outcome=np.full(length, -1, np.int8),
    )


class ScriptedEngine:
    """Returns `answer(fork)` as the completion of every fork, in batches; records the forks."""

    exact = True

    def __init__(self, answer: Callable[[Fork], Completion], *, batch: int = 4) -> None:
        self.answer, self.batch = answer, batch
        self.forks: list[Fork] = []
        self.in_flight = batch

    def run(self, source: ForkSource, *, budget: Budget) -> Iterator[tuple[Key, Completion]]:
        while forks := source.take(self.batch):
            self.forks += forks
            yield from [(fork.key, self.answer(fork)) for fork in forks]

    def score_all(self, sequences: Sequence[TokenSequence], *, k: int) -> Iterator[tuple[int, TopTokens]]:
        raise AssertionError("not scripted")

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass
