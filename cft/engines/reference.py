"""The reference engine: decodes one fork and one token at a time. It is simple and slow; other engines are tested against it.

It prefills prompt + kept response + `first_token`, then chooses a token, appends it and runs the next decode step, until an EOS
token or the limit.

Near ties: two computations of the same logits differ in the last bits (about 6e-5 between attention kernels). If the best two
tokens are closer than `tie_margin`, the batch, the cache or the kernel would decide between them. Every engine, including this
one, re-scores such choices with `rescore`: one forward pass without a cache over the ids of this row only. That pass uses the
packed linear layers (`cft/models/kernels.py`) where possible; they are the same for every engine, and faster.

Recurrent states are kept in the library's cache, like keys. If a model does not continue from its cache as in a plain forward
pass (`cached`), every token takes a pass over all ids.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from cft.engines.sampling import choose, require_finite, tie_margin_for, uniforms
from cft.models.architecture import fork_obstacles, require_steady_rotary
from cft.models.attention import usable_attention
from cft.models.device import device_facts
from cft.models.head import backbone, project_exactly
from cft.models.kernels import DecodingChoice, DecodingKernels, prepare_for_decoding
from cft.models.rounding import half_of_the_digits
from cft.ranges import AtLeastZero, in_range, require_in_range
from cft.types import Budget, Completion, Finish, Fork, ForkSource, Key, TokenSequence, TopTokens

if TYPE_CHECKING:
    from cft.models.lazy import LazyModel

LOG = logging.getLogger(__name__)
CACHES = ("past_key_values", "cache_params")  # names of the cache argument of models


class Ids(NamedTuple):
    """A row in the form that logit adjustments take (`cft.types.Written`)."""

    ids: list[int]
    prompt_len: int


def never_decided(key: Key, ids: Sequence[int]) -> bool:
    """The `decided` function of sources that need complete responses."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Decodes one continuation at a time; simple and slow.

    Args:
        tie_margin: Choices between logits closer than this are re-scored; null: 0.001 in float32, 0 in half precision.
    """

    name: ClassVar[str] = "reference"
    local: ClassVar[bool] = True
    samples: ClassVar[bool] = True
    adjusts: ClassVar[bool] = True
    hashes_weights: ClassVar[bool] = True

    tie_margin: AtLeastZero | None = None

    def __post_init__(self) -> None:
        require_in_range(self)

    def __call__(self, model: LazyModel) -> ReferenceEngine:
        return ReferenceEngine(model.load(), model.facts.eos_ids, tie_margin=self.tie_margin)


class ReferenceEngine:
    """Decodes one fork at a time, one token at a time.

    Args:
        model: A causal language model in eval mode.
        eos_ids: Every token that ends a response.
        tie_margin: In logits; None: see `tie_margin_for`.
        kernels: "auto" or "torch", used for near ties; must equal that of the engine that is compared with this one.
    """

    @in_range
    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Collection[int],
        *,
        tie_margin: AtLeastZero | None = None,
        kernels: DecodingChoice = "auto",
    ) -> None:
        self.model = model
        self.eos_ids = frozenset(eos_ids)
        self.tie_margin = tie_margin_for(model.dtype, tie_margin)
        self.in_flight = 1
        self._kernels: DecodingChoice = kernels

    @cached_property
    def packed(self) -> DecodingKernels:
        """A second copy of the linear layers, made at the first near tie."""
        return prepare_for_decoding(self.model, kernels=self._kernels)

    @property
    def exact(self) -> bool:
        return self.model.dtype.itemsize >= 4

    def facts(self) -> dict[str, Any]:
        found = {**device_facts(self.model.device), "tie_margin": self.tie_margin}
        return found if self.exact else {**found, **inexact_facts("reference", self.model)}

    def close(self) -> None:
        self.__dict__.pop("packed", None)

    def run(self, source: ForkSource, *, budget: Budget) -> Iterator[tuple[Key, Completion]]:
        while forks := source.take(1):
            yield forks[0].key, self.complete(forks[0], budget=budget, decided=source.decided)

    @torch.inference_mode()
    def complete(
        self, fork: Fork, *, budget: Budget, decided: Callable[[Key, Sequence[int]], bool] = never_decided
    ) -> Completion:
        ids = fork_prefix(fork)
        require_steady_rotary(self.model, length=fork.sequence.prompt_len + budget.max_new_tokens)
        finish = already_finished(fork, eos_ids=self.eos_ids, budget=budget)
        if finish is not None:
            return Completion(response_of(ids, fork), finish, 0)
        random = uniforms(fork.sampling, budget.max_new_tokens)
        cache = self._new_cache() if self.cached else {}
        feed, kept, ties = ids, len(ids), 0
        while True:
            output = self._pass(feed, cache)
            position = len(ids) - fork.sequence.prompt_len
            uniform = float(random[position]) if len(random) else 0.0
            (token,), (near,) = choose(
                output.logits[:, -1].float(),
                sampling=[fork.sampling],
                uniform=[uniform],
                tie_margin=self.tie_margin,
                written=[Ids(ids, fork.sequence.prompt_len)],
            )
            if near:
                token, ties = self.rescore(ids, fork, uniform=uniform), ties + 1
            ids = [*ids, token]
            if end := finish_of(ids, fork, eos_ids=self.eos_ids, budget=budget, decided=decided):
                return Completion(response_of(ids, fork), end, len(ids) - kept, ties)
            feed = [token] if cache else ids

    def _pass(self, ids: list[int], cache: dict[str, Any]) -> Any:
        ids_BT = torch.tensor([ids], device=self.model.device)
        with usable_attention(self.model):
            return self.model(ids_BT, **cache, use_cache=bool(cache), logits_to_keep=1)

    def _new_cache(self) -> dict[str, Any]:
        """The cache as a keyword argument of the model; {} if the model takes none of the known names."""
        taken = inspect.signature(self.model.forward).parameters
        name = next((name for name in CACHES if name in taken), None)
        return {} if name is None else {name: DynamicCache(config=self.model.config)}

    @cached_property
    @torch.inference_mode()
    def cached(self) -> bool:
        """Whether decoding with the cache equals a plain forward pass.

        Tested for models that cache more than keys and values: some models of the library silently restart at every token, or
        read their state wrongly.
        """
        if not fork_obstacles(self.model.config):
            return True
        embedding: Any = self.model.get_input_embeddings()
        ids = (torch.arange(1, 13) * 7919 % int(embedding.weight.shape[0])).tolist()
        cache, wrong = self._new_cache(), 0.0
        try:
            for start, end in ((0, 9), (9, 10), (10, 11), (11, 12)) if cache else ():
                found = self._pass(ids[start:end], cache).logits[:, -1].float()
                expected = self._pass(ids[:end], {}).logits[:, -1].float()
                wrong = max(wrong, float((found - expected).abs().max() / expected.abs().max()))
        except (TypeError, AttributeError, IndexError, KeyError, ValueError, RuntimeError):
            wrong = float("nan")
        right = bool(cache) and wrong <= half_of_the_digits(self.model.dtype)
        if not right:
            LOG.warning(
                "engine=reference: with transformers %s, %s does not decode from its cache as in a plain forward pass: every "
                "token takes a pass over the whole response, which is correct but slow",
                version("transformers"),
                type(self.model).__name__,
            )
        return right

    @torch.inference_mode()
    def rescore(self, ids: list[int], fork: Fork, *, uniform: float) -> int:
        """Choose the token after `ids` by one forward pass over them, without a batch and without a cache.

        Args:
            ids: Prompt and response so far.
            fork: The fork that is continued, with its sampling parameters.
            uniform: Random number of the position; ignored in greedy decoding.
        """
        ids_BT = torch.tensor([ids], device=self.model.device)
        with self.packed.active(), usable_attention(self.model):
            logits = self.model(ids_BT, use_cache=False, logits_to_keep=1).logits
        (token,), _ = choose(
            logits[:, -1].float(),
            sampling=[fork.sampling],
            uniform=[uniform],
            tie_margin=0.0,
            written=[Ids(ids, fork.sequence.prompt_len)],
        )
        return token

    def score_all(self, sequences: Sequence[TokenSequence], *, k: int) -> Iterator[tuple[int, TopTokens]]:
        """One teacher-forced pass per sequence, without padding."""
        for index, sequence in enumerate(sequences):
            yield index, self.score(sequence, k=k)

    @torch.inference_mode()
    def score(self, sequence: TokenSequence, *, k: int) -> TopTokens:
        """Statistics of one response by a teacher-forced pass. k: number of most probable tokens per position."""
        input_ids_BT = torch.tensor(sequence.ids[None].astype(np.int64), device=self.model.device)
        response_len = len(sequence.ids) - sequence.prompt_len
        if response_len < 1:
            raise ValueError(
                f"score needs a response: sequence of {len(sequence.ids)} tokens, prompt of {sequence.prompt_len}"
            )
        logits_RV = self._logits(input_ids_BT, last=response_len + 1)[:-1]
        require_finite(logits_RV.amax(-1))
        logprob_RV = torch.log_softmax(logits_RV, dim=-1)
        own_R = logprob_RV.gather(1, input_ids_BT[0, sequence.prompt_len :, None])[:, 0]
        entropy_R = torch.special.entr(logprob_RV.exp()).sum(-1)
        ids_RK, top_RK = top_tokens(logprob_RV, k=k)
        return TopTokens(own_R.cpu().numpy(), entropy_R.cpu().numpy(), ids_RK, top_RK)

    def _logits(self, input_ids_1T: Tensor, *, last: int) -> Tensor:
        """[last, V] float32. In half precision the head's products are accumulated and kept in float32: with rounded logits,
        one position in twelve would have other tokens at ranks 2 and 3, which are the alternatives that are tried."""
        with usable_attention(self.model):
            if self.model.dtype.itemsize >= 4:
                return self.model(input_ids_1T, use_cache=False, logits_to_keep=last).logits[0].float()
            hidden_TD = backbone(self.model)(input_ids_1T, use_cache=False).last_hidden_state[0, -last:]
        return project_exactly(self.model, hidden_TD)


def inexact_facts(name: str, model: PreTrainedModel) -> dict[str, Any]:
    """Facts that outcomes depend on when re-scored ties do not make them exact: in half precision and for mixtures of experts,
    decoded tokens depend on how an engine batches. Ranks of alternatives come from float32 logits in half precision as well."""
    return {
        "name": name,
        "version": version("transformers"),
        "dtype": str(model.dtype).removeprefix("torch."),
        "ranks": "float32 head",
        "batch_invariant": name == "reference",
    }


def fork_prefix(fork: Fork) -> list[int]:
    """All ids that the continuation is conditioned on, prompt included."""
    if not fork.sequence.prompt_len <= fork.prefix_len <= len(fork.sequence.ids):
        raise ValueError(
            f"fork {fork.key}: prefix_len {fork.prefix_len} is outside [{fork.sequence.prompt_len}, {len(fork.sequence.ids)}], "
            "the end of the prompt and the end of the sequence"
        )
    kept = fork.sequence.ids[: fork.prefix_len].tolist()
    return kept if fork.first_token is None else [*kept, fork.first_token]


def already_finished(fork: Fork, *, eos_ids: Collection[int], budget: Budget) -> Finish | None:
    """Why a fork has nothing to decode: its `first_token` ends the text, or the kept part fills the limit; else None."""
    if fork.first_token in eos_ids:
        return "stop"
    kept = fork.prefix_len - fork.sequence.prompt_len + (fork.first_token is not None)
    return "length" if kept >= fork.limit(budget) else None


def finish_of(
    ids: list[int],
    fork: Fork,
    *,
    eos_ids: Collection[int],
    budget: Budget,
    decided: Callable[[Key, Sequence[int]], bool],
) -> Finish | None:
    """Why a response ends at the last of `ids` (prompt included), or None if it does not."""
    if ids[-1] in eos_ids:
        return "stop"
    if len(ids) - fork.sequence.prompt_len >= fork.limit(budget):
        return "length"
    return "decided" if decided(fork.key, ids[fork.sequence.prompt_len :]) else None


def response_of(ids: list[int], fork: Fork) -> NDArray[np.int32]:
    return np.asarray(ids[fork.sequence.prompt_len :], dtype=np.int32)


def top_tokens(logprob_RV: Tensor, *, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The k most probable ids per row and their log-probs, [R, k] each; equal values by ascending id.

    topk guarantees no order among equal values, so a few more are fetched and sorted by (-value, id).
    """
    width = min(k + 8, logprob_RV.shape[-1])
    values_RW, ids_RW = (t.cpu().numpy() for t in logprob_RV.topk(width, dim=-1))
    order_RW = np.lexsort((ids_RW, -values_RW), axis=-1)[:, :k]
    return (
        np.take_along_axis(ids_RW, order_RW, axis=-1).astype(np.int32),
        np.take_along_axis(values_RW, order_RW, axis=-1).astype(np.float32),
    )
