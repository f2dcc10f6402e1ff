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

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

ASSISTANT = "assistant"  # the role whose turns models write
Key = Hashable
Finish = Literal["stop", "length", "decided", "memory"]
ResponseVerdict = Literal[
    "right", "wrong", "cut off", "undecided"
]  # all but rollouts hold right or wrong responses alone
GREEDY_SAMPLE = -1  # the number of the greedy response among a problem's responses; sampled ones count from 0


class Outcome(IntEnum):
    """Outcome of one counterfactual continuation; the store holds the int8 code."""

    RIGHT = 1
    WRONG = 0
    # An earlier alternative was right, so this one was not needed for an "all fail" mask. A position whose first alternative is
    # untried was left out altogether (`cft/positions`).
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
    messages: if the problem is a conversation, its messages in the format of chat templates; the last one is the assistant's
    answer, the others are the prompt. tools: JSON schemas passed to the chat template. place: where it was read, for
    people; not part of its identity.
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
    """A verifier's decision about one response.

    extracted: the final answer as found in the response, "" if none was found.
    explicit: the answer was in an explicit marker (boxed, ####), so a response that is cut off later keeps its verdict.
    reason: human-readable; always set when undecided.
    failed: the verifier did not finish (deadline, crash), so nothing is known about the text.
    """

    decision: Decision
    extracted: str
    explicit: bool
    reason: str
    failed: bool = False


class ThinkingTags(NamedTuple):
    """Opening and closing tag of the thinking in a response; both "" = responses have no thinking."""

    open: str
    close: str


NO_THINKING = ThinkingTags("", "")


class Verifier(Protocol):
    """Compares a response with a gold answer. Never raises on model text; picklable; deterministic; a dataclass.

    name, version: its identity in fingerprints. A change of any verdict is a new version.
    can_be_final: whether `final` is ever true; if not, engines need not decode a text before its end.
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
    """A token sequence that forks start from: a prompt, optionally followed by a response. ids: [L] int32."""

    ids: NDArray[np.int32]
    prompt_len: int


class Written(Protocol):
    """A row whose next token is to be chosen. ids: prompt included; the first prompt_len of them are the prompt."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def prompt_len(self) -> int: ...


class Adjustment(Protocol):
    """Changes the logits before a token is chosen, greedily or by sampling (`cft/decoding`). A pure function of the ids so far:
    a row may be decoded twice, and in any batch."""

    def adjust(self, logits_NV: torch.Tensor, rows: Sequence[Written]) -> torch.Tensor:
        """New logits, -inf for forbidden tokens; the input is not modified."""
        ...

    def unsure(self, logits_NV: torch.Tensor, rows: Sequence[Written], *, tie_margin: float) -> torch.Tensor | None:
        """[N] bool: rows where an error of `tie_margin` in the given logits could change the choice although the adjusted
        logits differ by more. None: no row."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy (equal logits: the lower id).

    Random numbers are a pure function of (seed, purpose): the same in any batch, on any rank.
    adjustment: applied to the logits before greedy choice and sampling alike; None = none.
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

    key: names the fork in the results, unique within a run. max_new_tokens: its own limit, counted like the budget's; the lower
    of the two applies, None = the budget's. top_k: the completion may carry this many most probable tokens of each position,
    from the decoding pass; engines that do not have them ignore it.
    """

    sequence: TokenSequence
    prefix_len: int
    first_token: int | None
    sampling: Sampling
    key: Key
    max_new_tokens: int | None = None
    top_k: int = 0

    def limit(self, budget: Budget) -> int:
        """Maximal length of its whole response, in tokens."""
        own = self.max_new_tokens
        return budget.max_new_tokens if own is None else min(own, budget.max_new_tokens)


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole response after a fork: kept part, `first_token`, continuation. ids: [R] int32, EOS included if it ended so.

    finish: "stop" = ended by an EOS token, "length" = reached the limit, "decided" = the source needed no more of it,
    "memory" = it did not fit into memory even alone.
    num_decoded: tokens the model chose after `first_token`.
    num_ties_rescored: near ties among them, decided by the reference engine.
    top: for every id, if the fork asked for it (`Fork.top_k`) and the engine has it from decoding; else None.
    """

    ids: NDArray[np.int32]
    finish: Finish
    num_decoded: int
    num_ties_rescored: int = 0
    top: TopTokens | None = None


@dataclass(frozen=True, slots=True)
class TopTokens:
    """Teacher-forced statistics of every response position of one sequence (float32, nats).

    logprob_R: log-prob of the response's own token. entropy_R: entropy of the next-token distribution; NaN if the engine sees
    only the most probable tokens.
    top_ids_RK, top_logprob_RK: the k most probable tokens, by falling logit, equal logits by rising id.
    """

    logprob_R: NDArray[np.float32]
    entropy_R: NDArray[np.float32]
    top_ids_RK: NDArray[np.int32]
    top_logprob_RK: NDArray[np.float32]


class ForkSource(Protocol):
    """The queue that an engine pulls forks from; forks may be added while it runs."""

    def take(self, n: int) -> list[Fork]:
        """At most n forks; an empty list ends the run once no fork is in flight."""
        ...

    def decided(self, key: Key, ids: Sequence[int]) -> bool:
        """Whether fork `key` may end here, because no continuation of its response `ids` could change the result. Called after
        every token but the last; False unless that is proven."""
        ...

    def settled(self, key: Key) -> bool:
        """Whether the outcome of fork `key` no longer matters, so that an engine may cancel it; `decided` is then true as well.
        The fork still yields one completion: its ids so far, finish "decided"."""
        ...


@dataclass(frozen=True, slots=True)
class Budget:
    """max_new_tokens: limit of a whole response, counted from the end of the prompt, kept part and `first_token` included."""

    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts about a model that do not need its weights.

    eos_ids: every token that ends a response, rising. context: maximal tokens of prompt and response together. vocab_size: rows
    of its output head. dtype: of its weights, as named by torch. unnamed_ids: rows of the head that have no token in the
    tokenizer.
    """

    eos_ids: tuple[int, ...]
    context: int
    vocab_size: int
    dtype: str
    unnamed_ids: frozenset[int] = frozenset()


class Engine(Protocol):
    """Token ids in, token ids out. Each fork taken yields one completion, in any order.

    exact: its ids equal the reference engine's in float32, near ties included. in_flight: forks that it works on at once.
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
        """What may change an outcome, for fingerprints: device and tie margin of an exact engine; name, version, dtype, device
        and whether results depend on the batch for any other."""
        ...

    def close(self) -> None:
        """Free its resources; it cannot be used afterwards."""
        ...


# numpy is imported where an array is made: the configuration check reads this module, and is to be quick.


def _no_counts() -> NDArray[np.int16]:
    import numpy as np

    return np.zeros((0, 0), dtype=np.int16)


def _no_outcomes() -> NDArray[np.int8]:
    import numpy as np

    return np.zeros(0, dtype=np.int8)


@dataclass(frozen=True, slots=True)
class AnnotatedResponse:
    """One row of the store: a response and the evidence about each of its tokens (docs: `cft/annotation/store.py`).

    Columns with a default exist only in stores whose configuration produces them (`cft/annotation/rows.py`).
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
    replay_outcome: NDArray[np.int8]  # [R] self-replay control at sampled positions, UNTRIED elsewhere
    verdict: ResponseVerdict = "right"  # of the response itself
    sample: int = GREEDY_SAMPLE  # its number among the problem's responses (`cft/annotation/rollouts.py`)
    # [R] outcome of the model's greedy continuation of the response before t, UNTRIED where not computed; [0] = no such column
    prefix_outcome: NDArray[np.int8] = field(default_factory=_no_outcomes)
    # [R, K + 1] counts of sampled continuations, column 0 after the response's own token (`cft/annotation/sampled.py`)
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
    """Where rows came from. fingerprint: of an annotation's conditions, or of the contents of other rows."""

    kind: Literal["annotation", "rows"]
    name: str
    place: Path
    fingerprint: str


class StepCounts(NamedTuple):
    """Token counts of a whole optimizer step, over all its micro-batches and ranks: the denominators of its sums.

    eligible: tokens with a static weight other than 0. response: response tokens. critical, other: response tokens by token
    group. sequence: rows with an eligible token. problem: groups of rows (`RowGroups`). The sampler knows them before anything
    is computed, since masks are static.
    """

    eligible: int = 0
    response: int = 0
    critical: int = 0
    other: int = 0
    sequence: int = 0
    problem: int = 0

    def __add__(self, more: StepCounts) -> StepCounts:  # type: ignore[override]
        return StepCounts(*(a + b for a, b in zip(self, more, strict=True)))


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Which rows of a batch a loss over groups compares: of each problem one chosen row and rejected ones, all in the batch.

    chosen_G: int64, the chosen row of each group. rejected_M: int64, rejected rows. group_M: int64, the group of each of them.
    example_G: int64, the number of each group among those that are trained on; None where they are held out.
    """

    chosen_G: torch.Tensor
    rejected_M: torch.Tensor
    group_M: torch.Tensor
    example_G: torch.Tensor | None

    def to(self, device: torch.device, *, non_blocking: bool = False) -> RowGroups:
        chosen_G, rejected_M, group_M = (
            tensor.to(device, non_blocking=non_blocking) for tensor in (self.chosen_G, self.rejected_M, self.group_M)
        )
        example_G = None if self.example_G is None else self.example_G.to(device, non_blocking=non_blocking)
        return RowGroups(chosen_G, rejected_M, group_M, example_G)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows padded on the right. Each column is aligned with the token it describes; the shift is in `cft/losses/eligible.py`.

    input_ids_BT: int64. lengths_B: int64, real tokens of a row.
    weight_BT: float32, static weight of the token's loss, 0 on prompt and padding.
    token_group_BT: int8, 1 critical, 0 other response token, 2 unknown, -1 prompt or padding.
    row_ids: response ids, for messages.
    scores: float32 [B, T] each, by name: stored scores that a method declared to need; 0 outside the response.
    step_counts: counts of the optimizer step that the batch belongs to.
    groups: groups of its rows, None where each row is trained on by itself.
    """

    input_ids_BT: torch.Tensor
    lengths_B: torch.Tensor
    weight_BT: torch.Tensor
    token_group_BT: torch.Tensor
    row_ids: tuple[str, ...]
    scores: Mapping[str, torch.Tensor] = field(default_factory=dict)
    step_counts: StepCounts = field(default_factory=StepCounts)
    groups: RowGroups | None = None

    def to(self, device: torch.device, *, non_blocking: bool = False) -> TokenBatch:
        """The batch on another device; Lightning calls this method to move it."""

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
            None if self.groups is None else self.groups.to(device, non_blocking=non_blocking),
        )
