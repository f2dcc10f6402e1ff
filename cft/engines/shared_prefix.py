"""The shared-prefix engine: all counterfactuals of a response share its prefix, which is computed and stored once.

    sequence  p p p p r r r r r r r r            prompt and response: one forward pass, one KV cache
    fork 1             a . . . . .                attends to p p p p, then to its own suffix
    fork 2                 b . . . .              attends to p p p p r r, then to its own suffix
    fork 3                       c . . . . . .    attends to p p p p r r r r r, then to its own suffix

A fork needs no prefill: its first token is an input of the next decode step. In a step, the newest tokens of all forks form
one matrix for the linear layers, as in any batch, and also one matrix against the keys of the shared sequence
(`cft/engines/attention.py`, an attention function registered with `transformers`; the model's code is unchanged). Only the
suffixes are read per fork.

    take forks -> prefill new sequences -> step, step, step ...        one token per fork and step
        ^                                    |
        '---- finished rows leave at once; when enough rows are free, the next forks are admitted (`cft/engines/scheduler.py`)

Solving uses one fork per sequence; sampling n answers uses n forks that start at the end of one prompt. A near tie is
re-scored by the reference engine (`ReferenceEngine.rescore`), so token ids do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from cft.engines.attention import ATTENTION, Decode, Keys, LayerKeys, Prefill
from cft.engines.factory import EngineError
from cft.engines.reference import (
    ReferenceEngine,
    already_finished,
    finish_of,
    fork_prefix,
    inexact_facts,
    response_of,
)
from cft.engines.refusals import other_engines, require_decodes, require_within_window
from cft.engines.sampling import choose, require_finite, tie_margin_for, uniforms
from cft.engines.scheduler import Scheduler
from cft.models.architecture import require_steady_rotary
from cft.models.attention import usable_attention
from cft.models.device import memory_for_keys
from cft.models.experts import experts_of
from cft.models.kernels import DecodingChoice
from cft.models.rounding import half_of_the_digits
from cft.ranges import AtLeastOne, AtLeastZero, in_range, require_in_range
from cft.types import GREEDY, Budget, Completion, Finish, Fork, ForkSource, Key, TokenSequence, TopTokens

if TYPE_CHECKING:
    from cft.models.lazy import LazyModel


@dataclass(slots=True, eq=False)
class Row:
    """A fork that is waiting or being decoded.

    ids: prompt included; the last one is the next input token. random: uniform random numbers by response position.
    """

    fork: Fork
    ids: list[int]
    random: NDArray[np.float64]
    visible: int
    shares_prefix: bool = False
    ties: int = 0

    @classmethod
    def start(cls, fork: Fork, *, random: NDArray[np.float64]) -> Row:
        ids = fork_prefix(fork)
        return cls(fork, ids, random, len(ids) - 1)

    @property
    def prompt_len(self) -> int:
        return self.fork.sequence.prompt_len

    def restarted(self) -> Row:
        return Row.start(self.fork, random=self.random)

    def uniform(self) -> float:
        return float(self.random[len(self.ids) - self.fork.sequence.prompt_len]) if len(self.random) else 0.0

    def completion(self, finish: Finish) -> Completion:
        decoded = len(self.ids) - len(fork_prefix(self.fork))
        return Completion(response_of(self.ids, self.fork), finish, decoded, self.ties)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix:
    """Forks of one response share its prefix. Needs a model whose attention transformers can replace (true of most models).

    Args:
        max_rows: Maximum batch size in continuations, at least 1.
        kv_budget_mb: Memory budget of the KV cache, in 10^6 bytes; continuations beyond it wait. null: 4096 on a CPU, 3/4 of
            the free memory on a GPU.
        tie_margin: Choices between logits closer than this are re-scored by the reference engine. null: 0.001 in float32, 0 in
            half precision.
        kernels: "auto" uses the fastest form of the linear layers on the device, at the cost of a second copy of them;
            "torch" uses the layers as they are.
    """

    name: ClassVar[str] = "shared_prefix"
    local: ClassVar[bool] = True
    samples: ClassVar[bool] = True
    adjusts: ClassVar[bool] = True
    hashes_weights: ClassVar[bool] = True

    max_rows: AtLeastOne = 256
    kv_budget_mb: AtLeastOne | None = None
    tie_margin: AtLeastZero | None = None
    kernels: DecodingChoice = "auto"

    def __post_init__(self) -> None:
        require_in_range(self)

    def __call__(self, model: LazyModel) -> SharedPrefixEngine:
        require_decodes(self.name, model.config)
        return SharedPrefixEngine(model.load(), model.facts.eos_ids, **asdict(self))


class SharedPrefixEngine:
    """Decodes many forks in one batch; a prefix that forks share is computed and stored once.

    Args:
        model: A causal language model in eval mode that takes its attention from `transformers`' registry.
        eos_ids: Every token that ends a response.
        max_rows: Maximum batch size in forks, at least 1.
        kv_budget_mb: Memory budget of the KV cache, in 10^6 bytes; None: see `memory_for_keys`. When it or the machine's
            memory runs out, rows are preempted. `back_offs` counts preemptions and `lost_tokens` the tokens decoded and then
            discarded, over all runs.
        tie_margin: In logits; None: see `tie_margin_for`.
        kernels: "auto": the layers in the form that decodes fastest, at the cost of a second copy (linear layers in float32
            on a CPU); "torch": the layers as they are.

    Raises:
        EngineError: The model's attention cannot be replaced, or the result differs from a plain forward pass.
    """

    @in_range
    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Collection[int],
        *,
        max_rows: AtLeastOne = 256,
        kv_budget_mb: AtLeastOne | None = None,
        tie_margin: AtLeastZero | None = None,
        kernels: DecodingChoice = "auto",
    ) -> None:
        require_decodes("shared_prefix", model.config)
        self.model = model
        self.eos_ids = frozenset(eos_ids)
        self.max_rows = max_rows
        self._kv_budget_mb = kv_budget_mb
        self.kv_budget_bytes = memory_for_keys(model.device, megabytes=kv_budget_mb)
        self.tie_margin = tie_margin_for(model.dtype, tie_margin)
        self.reference = ReferenceEngine(model, eos_ids, tie_margin=tie_margin, kernels=kernels)
        self.packed = self.reference.packed
        self.back_offs = self.lost_tokens = 0
        self._self_check()

    @property
    def exact(self) -> bool:
        """False for mixtures of experts: near ties of the router decide the experts of a token and are not re-scored."""
        return self.reference.exact and experts_of(self.model.config) is None

    @property
    def in_flight(self) -> int:
        return self.max_rows

    def facts(self) -> dict[str, Any]:
        found = self.reference.facts()
        if self.exact:
            return found
        batch = {"max_rows": self.max_rows, "kv_budget_mb": self._kv_budget_mb}
        return {**found, **inexact_facts("shared_prefix", self.model), **batch}

    def score_all(self, sequences: Sequence[TokenSequence], *, k: int) -> Iterator[tuple[int, TopTokens]]:
        return self.reference.score_all(sequences, k=k)

    def close(self) -> None:
        self.reference.close()

    def run(self, source: ForkSource, *, budget: Budget) -> Iterator[tuple[Key, Completion]]:
        scheduler = Scheduler(self.prefill, max_rows=self.max_rows, budget_bytes=self.kv_budget_bytes)
        while True:
            if scheduler.wants_forks():
                forks = source.take(scheduler.room())
                scheduler.asked(got=len(forks))
                for fork in forks:
                    length = fork.sequence.prompt_len + budget.max_new_tokens
                    require_steady_rotary(self.model, length=length)
                    require_within_window(self.model.config, length=length)
                    finish = already_finished(fork, eos_ids=self.eos_ids, budget=budget)
                    if finish is not None:
                        yield fork.key, Completion(response_of(fork_prefix(fork), fork), finish, 0)
                    else:
                        random = uniforms(fork.sampling, budget.max_new_tokens)
                        scheduler.waiting.append(Row.start(fork, random=random))
                if not forks and not scheduler.waiting and not scheduler.blocks:
                    return
            for row in scheduler.dropped(source.settled):
                yield row.fork.key, row.completion("decided")
            for row in scheduler.admit():
                yield row.fork.key, row.completion("memory")
            for row, finish in self._step(scheduler, budget=budget, decided=source.decided):
                yield row.fork.key, row.completion(finish)

    @torch.inference_mode()
    def _step(
        self, scheduler: Scheduler[Row], *, budget: Budget, decided: Callable[[Key, Sequence[int]], bool]
    ) -> list[tuple[Row, Finish]]:
        """Decode one token for every fork; return the rows that ended, which have been removed from the batch."""
        logits_NV, too_large = scheduler.fitting(self.next_logits)
        self.back_offs += scheduler.back_offs
        self.lost_tokens += scheduler.lost_tokens
        scheduler.back_offs = scheduler.lost_tokens = 0
        ended: list[tuple[Row, Finish]] = [(row, "memory") for row in too_large]
        if logits_NV is None:
            return ended
        rows = scheduler.rows
        tokens, near = choose(
            logits_NV,
            sampling=[row.fork.sampling for row in rows],
            uniform=[row.uniform() for row in rows],
            tie_margin=self.tie_margin,
            written=rows,
        )
        for row, token, tie in zip(rows, tokens, near, strict=True):
            if tie:
                token = self.reference.rescore(row.ids, row.fork, uniform=row.uniform())
                row.ties += 1
            row.ids.append(token)
        for block in scheduler.blocks:
            block.advance()
            for index in reversed(range(len(block))):
                row = block.rows[index]
                if end := finish_of(row.ids, row.fork, eos_ids=self.eos_ids, budget=budget, decided=decided):
                    block.remove(index)
                    ended.append((row, end))
        if ended:
            scheduler.left(len(ended))
        return ended

    @contextmanager
    def _attention(self) -> Iterator[None]:
        """Within this context, the model uses this engine's attention and linear layers."""
        config = self.model.config.get_text_config(decoder=True)
        before = config._attn_implementation
        config._attn_implementation = ATTENTION
        try:
            with self.packed.active():
                yield
        finally:
            config._attn_implementation = before

    @torch.inference_mode()
    def prefill(self, sequences: list[TokenSequence]) -> list[Keys]:
        """Keys and values of whole sequences; for each sequence, [1, h, len, d] per layer."""
        width = max(len(sequence.ids) for sequence in sequences)
        ids_BT = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids_BT[row, : len(sequence.ids)] = torch.from_numpy(sequence.ids)
        record = Prefill([])
        with self._attention():
            self.model(ids_BT.to(self.model.device), use_cache=False, logits_to_keep=1, forks=record)
        return [
            [LayerKeys(*(part[i : i + 1, :, : len(t.ids)] for part in (layer.k, layer.v))) for layer in record.keys]
            for i, t in enumerate(sequences)
        ]

    @torch.inference_mode()
    def next_logits(self, rows: Sequence[Row], plan: Decode) -> Tensor:
        """[N, V] float32 logits after the last id of every row. Its keys are written but count only after `KVBlock.advance`."""
        token_N = torch.tensor([row.ids[-1] for row in rows], device=self.model.device)
        position_N = torch.tensor([len(row.ids) - 1 for row in rows], device=self.model.device)
        with self._attention():
            output = self.model(
                token_N[:, None], position_ids=position_N[:, None], use_cache=False, logits_to_keep=1, forks=plan
            )
        return output.logits[:, -1].float()

    @torch.inference_mode()
    def _self_check(self) -> None:
        """Compare two steps of four forks with a plain forward pass, to detect models with another kind of attention."""
        kind = type(self.model).__name__
        embedding: Any = self.model.get_input_embeddings()  # may be wrapped by an adapter, which always has
        vocabulary = int(embedding.weight.shape[0])  # `weight` but not every other attribute
        ids = (torch.arange(1, 11) * 7919 % vocabulary).tolist()
        with usable_attention(self.model):
            expected = self.model(torch.tensor([ids], device=self.model.device), use_cache=False).logits[0].float()
        require_finite(expected.amax(-1))
        sequences = [TokenSequence(np.asarray(ids, dtype=np.int32), 1) for _ in range(3)]
        forks = [
            Fork(sequence, length, None, GREEDY, length)
            for sequence, length in zip((*sequences, sequences[0]), (4, 7, 1, 8), strict=True)
        ]
        scheduler = Scheduler[Row](self.prefill, max_rows=len(forks), budget_bytes=self.kv_budget_bytes)
        scheduler.waiting.extend(Row.start(fork, random=np.zeros(0)) for fork in forks)
        wrong = 0.0
        try:
            scheduler.admit()
            for _ in range(2):
                rows = scheduler.rows
                found = self.next_logits(rows, scheduler.plan())
                wanted = torch.stack([expected[len(row.ids) - 1] for row in rows])
                wrong = max(wrong, float((found - wanted).abs().max() / expected.abs().max()))
                for row in rows:
                    row.ids.append(ids[len(row.ids)])
                for block in scheduler.blocks:
                    block.advance()
        except (TypeError, AttributeError, IndexError, RuntimeError) as error:
            reason = str(error)
            if not self.model._supports_attention_backend:
                reason = "it computes attention in its own code, which transformers cannot replace"
            raise EngineError(
                f"engine=shared_prefix cannot decode with {kind}: {reason}; {other_engines(self.model.config)}"
            ) from error
        if not wrong <= half_of_the_digits(self.model.dtype):
            raise EngineError(
                f"engine=shared_prefix does not reproduce the logits of {kind} (error {wrong:.1e} of the largest logit): "
                f"its attention is not a plain softmax over all earlier tokens; {other_engines(self.model.config)}"
            )
