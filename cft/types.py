"""The values that travel between the stages, and the legend of shape suffixes.

    B  rows of a batch          P  prompt tokens of a row          N  eligible tokens of a batch, flattened
    T  padded sequence length   R  response tokens of a row        V  vocabulary
    K  alternatives a position  L  P + R, tokens of a whole row    D  hidden width

A name such as `logprob_BT` carries the axes of its tensor in that order. This module imports neither torch nor
transformers, so that the config check and the verifier workers can use it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Key = Hashable
Finish = Literal["stop", "length", "decided", "memory"]


class Outcome(IntEnum):
    """What came of one counterfactual continuation; the int8 code is what the store holds."""

    RIGHT = 1
    WRONG = 0
    # An earlier alternative was right, so this one was not needed for an "all fail" mask; where the first one is untried, so is
    # the position (`cft/positions`).
    UNTRIED = -1
    CUT_OFF = -2  # the token limit came before an explicit answer
    UNDECIDED = -3  # the verifier could not decide: timed out, crashed, refused


class Decision(StrEnum):
    RIGHT = "right"
    WRONG = "wrong"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its gold answer. `id` is unique within its source and stable across runs.

    solution: a worked solution that ends in the answer, "" where the source has none (`cft annotate responses=given`).
    messages: of a problem that is a conversation, as chat templates read them: the last one is the assistant's that answers,
    the others are the prompt. tools: JSON schemas that come with it. place: where it was read, for people, "" where it was
    not read from anywhere; no part of what it is.
    """

    id: str
    question: str
    answer: str
    solution: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Any, ...] = ()
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verifier's decision of one response.

    extracted: the final answer as found in the response, "" if none was found.
    explicit: the answer stood in an explicit marker (boxed, ####), so that a response cut off later keeps its verdict.
    reason: why, for people; always set when undecided.
    failed: the verifier did not come to an end (deadline, crash), so that nothing is known of the text.
    """

    decision: Decision
    extracted: str
    explicit: bool
    reason: str
    failed: bool = False


class ThinkingTags(NamedTuple):
    """What opens and what closes the thinking of a response; both "" where nothing is thinking."""

    open: str
    close: str


NO_THINKING = ThinkingTags("", "")


class Verifier(Protocol):
    """Compares a response with a gold answer. Never raises on model text; picklable; deterministic; a dataclass.

    name, version: its identity in fingerprints. A change of any verdict is a new version.
    can_be_final: whether `final` is ever true; where it is not, engines need not decode a text before its end.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    can_be_final: ClassVar[bool]

    def __call__(self, response: str, answer: str) -> Verdict: ...

    def final(self, text: str) -> bool:
        """True if no continuation of `text` can change the verdict (False where that is not proven)."""
        ...


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A token sequence that forks start from: prompt and, where there is one, a response. ids: [L] int32."""

    ids: NDArray[np.int32]
    prompt_len: int


class Written(Protocol):
    """What is known of a row whose next token is to be chosen. ids: prompt included; prompt_len of them are the prompt."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def prompt_len(self) -> int: ...


class Adjustment(Protocol):
    """Changes the logits before a token is chosen, greedily or not (`cft/decoding`). A pure function of the ids written so
    far: a row may be decoded twice, and in any batch."""

    def adjust(self, logits_NV: torch.Tensor, rows: Sequence[Written]) -> torch.Tensor:
        """New logits, -inf where a token is forbidden; the given ones stay as they are."""
        ...

    def unsure(self, logits_NV: torch.Tensor, rows: Sequence[Written], *, tie_margin: float) -> torch.Tensor | None:
        """[N] bool: rows where an error of `tie_margin` in the given logits could turn the choice although the adjusted ones
        are farther apart. None: no row."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy (equal logits: the lower id).

    Random numbers are a pure function of (seed, purpose): the same in any batch, on any rank.
    adjustment: of the logits, before either kind of choice; None: none.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    purpose: str = ""
    adjustment: Adjustment | None = None


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Fork:
    """Continue `sequence.ids[:prefix_len]`, after `first_token` where one is given.

    prefix_len counts from the start of the prompt. Solving: prefix_len = prompt_len, first_token None. Counterfactual at
    response position t: prefix_len = prompt_len + t, first_token = the alternative.

    key: names the fork in the results, unique within a run. max_new_tokens: its own limit, counted as the budget's; None =
    the budget's alone, and the lower one holds. top_k: so many most probable tokens of each position may come with the
    completion, from the pass that chose; engines that cannot give them ignore it.
    """

    sequence: TokenSequence
    prefix_len: int
    first_token: int | None
    sampling: Sampling
    key: Key
    max_new_tokens: int | None = None
    top_k: int = 0

    def limit(self, budget: Budget) -> int:
        """Tokens that its whole response may have."""
        own = self.max_new_tokens
        return budget.max_new_tokens if own is None else min(own, budget.max_new_tokens)


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole response after a fork: kept part, `first_token`, continuation. ids: [R] int32, EOS included if it ended so.

    finish: "stop" = ended by an EOS token, "length" = met the limit, "decided" = the source had seen enough, "memory" =
    even alone it did not fit.
    num_decoded: tokens the model chose after `first_token`.
    num_ties_rescored: near ties among them, which the reference engine decided.
    top: of every id, where the fork asked for it (`Fork.top_k`) and the engine has it from decoding; else None.
    """

    ids: NDArray[np.int32]
    finish: Finish
    num_decoded: int
    num_ties_rescored: int = 0
    top: TopTokens | None = None


@dataclass(frozen=True, slots=True)
class TopTokens:
    """Teacher-forced statistics of every response position of one sequence (float32, nats).

    logprob_R: of the response's own token. entropy_R: of the next-token distribution; NaN from an engine that sees only the
    most probable tokens.
    top_ids_RK, top_logprob_RK: the k most probable tokens, by falling logit, equal logits by rising id.
    """

    logprob_R: NDArray[np.float32]
    entropy_R: NDArray[np.float32]
    top_ids_RK: NDArray[np.int32]
    top_logprob_RK: NDArray[np.float32]


class ForkSource(Protocol):
    """What an engine pulls its work from; forks may be added while it runs."""

    def take(self, n: int) -> list[Fork]:
        """At most n forks; an empty list ends the run once no fork is under way."""
        ...

    def decided(self, key: Key, ids: Sequence[int]) -> bool:
        """Whether fork `key` may end here: no continuation of its response `ids` could change what the source wants to
        know. Asked after every token but the last; False where that is not proven."""
        ...

    def settled(self, key: Key) -> bool:
        """Whether the outcome of fork `key` can no longer matter, so that an engine may cancel it; then `decided` says so too.
        The fork still yields one completion: what is known of its ids, finish "decided"."""
        ...


@dataclass(frozen=True, slots=True)
class Budget:
    """max_new_tokens: limit of a whole response, counted from the end of the prompt, kept part and `first_token` included."""

    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model without its weights.

    eos_ids: every token that ends a response, rising. context: tokens of prompt and response together. vocab_size: rows of
    its output head. dtype: of its weights, as in `torch`. unnamed_ids: rows of the head that are no token of the tokenizer.
    """

    eos_ids: tuple[int, ...]
    context: int
    vocab_size: int
    dtype: str
    unnamed_ids: frozenset[int] = frozenset()


class Engine(Protocol):
    """Token ids in, token ids out. Each fork taken yields one completion, in any order.

    exact: it gives the reference engine's ids in float32, near ties included. in_flight: forks that it works on at once.
    """

    @property
    def exact(self) -> bool: ...

    @property
    def in_flight(self) -> int: ...

    def run(self, source: ForkSource, *, budget: Budget) -> Iterator[tuple[Key, Completion]]: ...

    def score_all(self, sequences: Sequence[TokenSequence], *, k: int) -> Iterator[tuple[int, TopTokens]]:
        """Teacher-forced statistics of responses with their `k` most probable tokens, by index, in any order."""
        ...

    def facts(self) -> dict[str, Any]:
        """What may turn an outcome, for fingerprints: of an exact engine its device and tie margin, of another one name,
        version, dtype, device and whether its results depend on the batch."""
        ...

    def close(self) -> None:
        """Give back what it holds; it decodes no more."""
        ...


def _no_counts() -> NDArray[np.int16]:
    return np.zeros((0, 0), dtype=np.int16)


@dataclass(frozen=True, slots=True)
class AnnotatedResponse:
    """One row of the store: a response and the evidence about each of its tokens (docs: `cft/annotation/store.py`).

    Of the columns with a default a store has those that its configuration makes (`cft/annotation/rows.py`).
    """

    problem_id: str
    response_id: str
    problem: str
    answer: str
    response: str
    finish: str
    prompt_ids: NDArray[np.int32]  # [P]
    response_ids: NDArray[np.int32]  # [R]
    char_span: NDArray[np.int32]  # [R, 2] of `response`, end exclusive
    logprob: NDArray[np.float32]  # [R]
    entropy: NDArray[np.float32]  # [R] nats
    alt_ids: NDArray[np.int32]  # [R, K]
    alt_logprob: NDArray[np.float32]  # [R, K]
    alt_answer: list[list[str]]  # [R][K] the continuation's final answer, "" where none
    alt_tokens: NDArray[np.int32]  # [R, K] tokens decoded for the verdict
    alt_outcome: NDArray[np.int8]  # [R, K] Outcome codes
    replay_outcome: NDArray[np.int8]  # [R] the self-replay control at sampled positions, UNTRIED elsewhere
    verdict: Literal["right", "wrong"] = "right"  # of the response itself
    # [R] what the model's greedy continuation of the response before t came to, UNTRIED where not asked; [0] without
    prefix_outcome: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, dtype=np.int8))
    # [R, K + 1] sampled continuations, column 0 after the response's own token (`cft/annotation/sampled.py`); [0, 0] without
    sampled: NDArray[np.int16] = field(default_factory=_no_counts)
    sampled_right: NDArray[np.int16] = field(default_factory=_no_counts)
    sampled_cut_off: NDArray[np.int16] = field(default_factory=_no_counts)
    sampled_undecided: NDArray[np.int16] = field(default_factory=_no_counts)
    scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # [R] each: stored scores by name

    @property
    def tried_R(self) -> NDArray[np.bool_]:
        """[R] positions with a counterfactual: the first alternative is the first one tried."""
        return (self.alt_outcome != Outcome.UNTRIED).any(1)


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where rows came from. fingerprint: of an annotation that of its conditions, of other rows that of their contents."""

    kind: Literal["annotation", "rows"]
    name: str
    place: Path
    fingerprint: str


class StepCounts(NamedTuple):
    """What the whole optimizer step holds, over all its micro-batches and ranks: what its sums are divided by.

    eligible: tokens with a static weight other than 0. response: response tokens. critical, other: response tokens by token
    group. sequence: rows with an eligible token. The sampler knows them before anything is computed, since masks are static.
    """

    eligible: int = 0
    response: int = 0
    critical: int = 0
    other: int = 0
    sequence: int = 0

    def __add__(self, more: StepCounts) -> StepCounts:  # type: ignore[override]
        return StepCounts(*(a + b for a, b in zip(self, more, strict=True)))


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows padded on the right. Each column is aligned with the token it describes; the shift is in `cft/losses/eligible.py`.

    input_ids_BT: int64. lengths_B: int64, real tokens of a row.
    weight_BT: float32, static weight of the token's loss, 0 on prompt and padding.
    token_group_BT: int8, 1 critical, 0 other response token, 2 one of which that is not known, -1 prompt or padding.
    row_ids: response ids, for messages.
    scores: float32 [B, T] each, by name: stored scores that a method declared to need; 0 outside the response.
    step_counts: of the optimizer step that the batch belongs to.
    """

    input_ids_BT: torch.Tensor
    lengths_B: torch.Tensor
    weight_BT: torch.Tensor
    token_group_BT: torch.Tensor
    row_ids: tuple[str, ...]
    scores: Mapping[str, torch.Tensor] = field(default_factory=dict)
    step_counts: StepCounts = field(default_factory=StepCounts)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> TokenBatch:
        """The batch on another device; Lightning moves whatever has this method by calling it."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return TokenBatch(
            moved(self.input_ids_BT),
            moved(self.lengths_B),
            moved(self.weight_BT),
            moved(self.token_group_BT),
            self.row_ids,
            {name: moved(tensor) for name, tensor in self.scores.items()},
            self.step_counts,
        )
