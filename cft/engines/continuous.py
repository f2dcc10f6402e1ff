"""transformers' own continuous batching: paged KV cache, prefixes shared in whole pages, CUDA graphs where available.

No dependency beyond transformers. Decoding runs in the library's thread; this module adds requests and reads results:

    take forks -> add_request ... get_result -> completion        at most `max_requests` requests in flight
                  cancel_request if the source says that a fork no longer matters

Near ties depend on the batch, so ids can differ from the reference engine's and the engine is not exact. It decodes greedily
only, since the library draws samples from one stream of random numbers for the whole batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from cft.engines.factory import EngineError
from cft.engines.reference import ReferenceEngine, already_finished, fork_prefix, response_of
from cft.engines.refusals import require_decodes, require_greedy, require_unadjusted
from cft.models.architecture import context_length, require_steady_rotary
from cft.models.attention import usable_attention
from cft.models.device import device_facts, memory_for_keys
from cft.ranges import AtLeastOne, in_range, require_in_range
from cft.types import Budget, Completion, Fork, ForkSource, Key, TokenSequence, TopTokens

if TYPE_CHECKING:
    from cft.models.lazy import LazyModel

PAGE_ON_CPU, PAGE_ON_GPU = 16, 256  # tokens; flash attention's decoding kernel requires 256
BATCH_TOKENS = 1024  # tokens of one forward pass, prefill included
WAIT_S = 0.2  # interval between checks for forks that no longer matter


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuous:
    """transformers' own continuous batching.

    Args:
        max_requests: Maximum batch size in continuations, at least 1.
        kv_budget_mb: Memory budget of the KV cache, in 10^6 bytes. null: 4096 on a CPU, 3/4 of the free memory on a GPU.
        page_size: Tokens per page; forks share whole pages of their prefix. null: 16 on a CPU, 256 on a GPU.
    """

    name: ClassVar[str] = "continuous"
    local: ClassVar[bool] = True
    samples: ClassVar[bool] = False
    adjusts: ClassVar[bool] = False
    hashes_weights: ClassVar[bool] = True

    max_requests: AtLeastOne = 256
    kv_budget_mb: AtLeastOne | None = None
    page_size: AtLeastOne | None = None

    def __post_init__(self) -> None:
        require_in_range(self)

    def __call__(self, model: LazyModel) -> ContinuousEngine:
        require_decodes(self.name, model.config)
        return ContinuousEngine(model.load(), model.facts.eos_ids, **asdict(self))


class ContinuousEngine:
    """Decodes many forks greedily with transformers' continuous batching.

    Args:
        model: A causal language model in eval mode whose layers use attention, to windows or to all earlier tokens.
        eos_ids: Every token that ends a response.
        max_requests: As in `Continuous`.
        kv_budget_mb: As in `Continuous`.
        page_size: As in `Continuous`.

    Raises:
        EngineError: The model or the installed transformers has no continuous batching.
    """

    exact = False

    @in_range
    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Collection[int],
        *,
        max_requests: AtLeastOne = 256,
        kv_budget_mb: AtLeastOne | None = None,
        page_size: AtLeastOne | None = None,
    ) -> None:
        require_decodes("continuous", model.config)
        if not hasattr(model, "continuous_batching_context_manager"):
            raise EngineError(
                f"engine=continuous: {type(model).__name__} has no continuous batching in transformers "
                f"{version('transformers')}; use engine=reference"
            )
        self.model = model
        self.eos_ids = frozenset(eos_ids)
        self.in_flight = max_requests
        self.page_size = page_size or (PAGE_ON_GPU if model.device.type == "cuda" else PAGE_ON_CPU)
        self.num_blocks = self._blocks(memory_for_keys(model.device, megabytes=kv_budget_mb))
        self.reference = ReferenceEngine(model, eos_ids, tie_margin=0.0)

    def _blocks(self, budget_bytes: int) -> int:
        """Number of pages: as many as the budget holds, at most what full-context requests could fill."""
        config: Any = self.model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        page_bytes = 2 * config.num_hidden_layers * heads * width * self.page_size * self.model.dtype.itemsize
        wanted = self.in_flight * -(-context_length(config) // self.page_size)
        return max(1, min(wanted, budget_bytes // page_bytes))

    def facts(self) -> dict[str, Any]:
        return {
            **device_facts(self.model.device),
            "name": "continuous",
            "version": version("transformers"),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "batch_invariant": False,
            "attention": self.model.config._attn_implementation,
        }

    def close(self) -> None:
        self.reference.close()

    def score_all(self, sequences: Sequence[TokenSequence], *, k: int) -> Iterator[tuple[int, TopTokens]]:
        """Teacher-forced passes of the model, one per sequence."""
        return self.reference.score_all(sequences, k=k)

    def run(self, source: ForkSource, *, budget: Budget) -> Iterator[tuple[Key, Completion]]:
        generation = GenerationConfig(
            do_sample=False,
            eos_token_id=sorted(self.eos_ids) or -1,
            pad_token_id=0,
            max_new_tokens=budget.max_new_tokens,
        )
        in_flight: dict[str, Fork] = {}
        manager: Any = None
        count = 0
        with usable_attention(self.model), ExitStack() as stack:
            try:
                while True:
                    room = self.in_flight - len(in_flight)
                    forks = source.take(room) if room else []
                    for fork in forks:
                        if completion := self._unsent(fork, budget=budget):
                            yield fork.key, completion
                            continue
                        if manager is None:
                            manager = stack.enter_context(self._manager(generation))
                        count += 1
                        ids = fork_prefix(fork)
                        in_flight[name := str(count)] = fork
                        left = fork.limit(budget) - (len(ids) - fork.sequence.prompt_len)
                        manager.add_request(
                            ids, request_id=name, max_new_tokens=left, eos_token_id=sorted(self.eos_ids) or -1
                        )
                    if not in_flight:
                        if not forks:
                            return
                        continue
                    wait = WAIT_S
                    while (output := manager.get_result(timeout=wait)) is not None:
                        wait = 0.0  # further results only if they are already there
                        if output.is_finished() and (fork := in_flight.pop(output.request_id, None)):
                            yield fork.key, self._completion(fork, output)
                    if wait and not manager.is_running():
                        raise EngineError(
                            f"engine=continuous: transformers' generation loop ended with {len(in_flight)} requests in flight"
                        )
                    for name in [name for name, fork in in_flight.items() if source.settled(fork.key)]:
                        manager.cancel_request(name)
                        fork = in_flight.pop(name)
                        yield fork.key, Completion(response_of(fork_prefix(fork), fork), "decided", 0)
            finally:
                for name in in_flight:  # otherwise the library finishes them before it stops
                    if manager is not None:
                        manager.cancel_request(name)

    def _manager(self, generation: GenerationConfig) -> AbstractContextManager[Any]:
        """A context in which the library's generation loop runs."""
        library: Any = self.model
        return library.continuous_batching_context_manager(
            generation, continuous_batching_config=self._config(), warmup=False
        )

    def _unsent(self, fork: Fork, *, budget: Budget) -> Completion | None:
        """The completion of a fork that has nothing to decode or does not fit into memory by itself; else None."""
        require_greedy(fork.sampling, name="continuous")
        require_unadjusted(fork.sampling, name="continuous")
        require_steady_rotary(self.model, length=fork.sequence.prompt_len + budget.max_new_tokens)
        ids = fork_prefix(fork)
        if finish := already_finished(fork, eos_ids=self.eos_ids, budget=budget):
            return Completion(response_of(ids, fork), finish, 0)
        if fork.sequence.prompt_len + fork.limit(budget) > self.num_blocks * self.page_size:
            return Completion(response_of(ids, fork), "memory", 0)
        return None

    def _completion(self, fork: Fork, output: Any) -> Completion:
        if output.error:
            raise EngineError(f"engine=continuous: transformers could not decode a request: {output.error}")
        ids = [*fork_prefix(fork), *output.generated_tokens]
        finish = "stop" if ids[-1] in self.eos_ids else "length"
        return Completion(response_of(ids, fork), finish, len(output.generated_tokens))

    def _config(self) -> ContinuousBatchingConfig:
        """The library's settings, under the names that the installed transformers uses."""
        known = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
        options = {
            "page_size" if "page_size" in known else "block_size": self.page_size,
            "num_blocks": self.num_blocks,
            "max_batch_tokens": max(BATCH_TOKENS, self.in_flight),
            "max_requests_per_batch": self.in_flight,
            "allow_block_sharing": True,
            "auto_switch_to_flash": False,  # model.attn_implementation decides
        }
        return ContinuousBatchingConfig(**{name: value for name, value in options.items() if name in known})
