"""The implementations of counterfactual decoding that `experiments/bench_annotate.py` compares, on the same continuations.

ours         the engine of this package
batched      left-padded `generate` in batches sorted by length, as an experienced user would write it
sequential   `generate` one at a time, the paper's baseline (arXiv 2510.10974)
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from cft.annotation.counterfactual import Evidence, ListSource, fresh_evidence, run_counterfactuals
from cft.engines.reference import response_of
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.types import GREEDY, Budget, Completion, Fork, Outcome, TokenSequence
from cft.verifiers.grader import Grader

Cell = tuple[int, int, int]  # response, position, rank


@dataclass(frozen=True, slots=True)
class Response:
    """A response to annotate. alt_ids: [R, K]. gold: the answer that counts as right."""

    sequence: TokenSequence
    alt_ids_RK: NDArray[np.int32]
    gold: str

    def fork(self, cell: Cell) -> Fork:
        _, t, rank = cell
        return Fork(self.sequence, self.sequence.prompt_len + t, int(self.alt_ids_RK[t, rank]), GREEDY, cell)


@dataclass(slots=True)
class Arm:
    """Results of an arm: wall time in seconds, decoded tokens, outcomes and ids by cell."""

    seconds: float = 0.0
    tokens: int = 0
    outcomes: dict[Cell, int] = field(default_factory=dict)
    ids: dict[Cell, list[int]] = field(default_factory=dict)

    def __add__(self, other: Arm) -> Arm:
        return Arm(
            self.seconds + other.seconds,
            self.tokens + other.tokens,
            {**self.outcomes, **other.outcomes},
            {**self.ids, **other.ids},
        )


def cells(responses: Sequence[Response], *, rank: int) -> list[Cell]:
    return [(i, t, rank) for i, r in enumerate(responses) for t in range(len(r.alt_ids_RK))]


def ours(
    engine: SharedPrefixEngine, responses: Sequence[Response], *, grader: Grader, budget: Budget, short_circuit: bool
) -> Arm:
    """Prefill, decoding and verification of all positions with the engine."""
    evidence: list[Evidence] = [
        fresh_evidence(
            response_id=str(i), answer=r.gold, sequence=r.sequence, alt_ids_RK=r.alt_ids_RK, replay_fraction=0.0
        )
        for i, r in enumerate(responses)
    ]
    started = time.perf_counter()
    tally = run_counterfactuals(engine, evidence, grader=grader, budget=budget, short_circuit=short_circuit)
    arm = Arm(time.perf_counter() - started, tally.tokens)
    for i, row in enumerate(evidence):
        for t, rank in zip(*np.nonzero(row.outcome_RK != Outcome.UNTRIED), strict=True):
            arm.outcomes[i, int(t), int(rank)] = int(row.outcome_RK[t, rank])
    return arm


def generated(
    model: PreTrainedModel,
    eos_ids: Collection[int],
    responses: Sequence[Response],
    wanted: Iterable[Cell],
    *,
    grader: Grader,
    budget: Budget,
    batch_size: int,
    max_steps: int = 10**6,
) -> Arm:
    """The same with `generate`, in batches of `batch_size` continuations of similar length, verified at the end; at most
    `max_steps` tokens per continuation."""
    arm = Arm()
    started = time.perf_counter()
    forks = sorted((responses[cell[0]].fork(cell) for cell in wanted), key=lambda fork: fork.prefix_len)
    done: list[tuple[Fork, Completion]] = []
    for start in range(0, len(forks), batch_size):
        done += generate_batch(model, eos_ids, forks[start : start + batch_size], budget=budget, max_steps=max_steps)
    graded = grader([(completion, responses[fork.key[0]].gold) for fork, completion in done])  # type: ignore[index]
    arm.seconds = time.perf_counter() - started
    for (fork, completion), (outcome, _) in zip(done, graded, strict=True):
        arm.tokens += completion.num_decoded
        arm.outcomes[fork.key] = int(outcome)  # type: ignore[index]
        arm.ids[fork.key] = completion.ids.tolist()  # type: ignore[index]
    return arm


@torch.inference_mode()
def generate_batch(
    model: PreTrainedModel, eos_ids: Collection[int], forks: Sequence[Fork], *, budget: Budget, max_steps: int = 10**6
) -> list[tuple[Fork, Completion]]:
    """One call of `generate`. Continuations that begin with EOS are not decoded; each is truncated at its own limit."""
    done, rows = [], []
    for fork in forks:
        ids = [*fork.sequence.ids[: fork.prefix_len].tolist(), fork.first_token]
        if fork.first_token in eos_ids:
            done.append((fork, Completion(response_of(ids, fork), "stop", 0)))
        else:
            rows.append((fork, ids, min(max_steps, budget.max_new_tokens - (len(ids) - fork.sequence.prompt_len))))
    if not rows:
        return done
    width = max(len(ids) for _, ids, _ in rows)
    input_ids = torch.tensor([[0] * (width - len(ids)) + ids for _, ids, _ in rows])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for _, ids, _ in rows])
    output = model.generate(  # pyright: ignore[reportCallIssue]
        input_ids,
        attention_mask=mask,
        max_new_tokens=max(room for *_, room in rows),
        do_sample=False,
        eos_token_id=sorted(eos_ids) or [-1],
        pad_token_id=0,
    )
    for (fork, ids, room), tokens in zip(rows, output[:, width:].tolist(), strict=True):
        end = next((i + 1 for i, token in enumerate(tokens) if token in eos_ids), None)
        finish = "stop" if end is not None and end <= room else "length"
        kept = tokens[: min(room, end or room)]
        done.append((fork, Completion(response_of([*ids, *kept], fork), finish, len(kept))))
    return done


def collected(
    engine: SharedPrefixEngine, responses: Sequence[Response], wanted: Iterable[Cell], *, budget: Budget
) -> dict[Cell, list[int]]:
    """Ids of the given continuations, decoded with the engine."""
    forks = [responses[cell[0]].fork(cell) for cell in wanted]
    return {key: completion.ids.tolist() for key, completion in engine.run(ListSource(forks), budget=budget)}  # type: ignore[misc]
