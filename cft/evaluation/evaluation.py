"""Greedy and sampled responses of a model to problems, graded by one verifier, with intervals.

Each problem gets one greedy response and n sampled ones. A sample's random numbers are a function of (seed, problem id,
sample number), so results do not depend on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cft.annotation.counterfactual import ListSource
from cft.console import progress
from cft.evaluation.intervals import is_unbounded
from cft.evaluation.metrics import Interval, bootstrap_interval, distinct_n, maj_at_k, pass_at_k, self_bleu
from cft.files import write_atomically
from cft.models.text import decode
from cft.types import (
    GREEDY,
    GREEDY_SAMPLE,
    Adjustment,
    Budget,
    Completion,
    Engine,
    Fork,
    Outcome,
    Problem,
    Sampling,
    TokenSequence,
)
from cft.verifiers.grader import Grader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cft.prompts.chat import Prompt

SAMPLE_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("sample", pa.int32()),
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("response", pa.string()),
        ("response_ids", pa.list_(pa.int32())),
        ("extracted", pa.string()),
        ("outcome", pa.int8()),
        ("finish", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """num_samples: sampled responses per problem in addition to the greedy one, 0 = none."""

    num_samples: int
    temperature: float
    top_p: float
    seed: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One response. sample: GREEDY_SAMPLE or 0 .. num_samples - 1. entropy: mean over its tokens, nats; NaN if sampled."""

    problem: Problem
    sample: int
    completion: Completion
    outcome: Outcome
    extracted: str
    entropy: float


@dataclass(frozen=True, slots=True)
class Solver:
    """A model with everything that solving needs: engine, tokenizer, prompt and grader.

    max_positions: its context length. adjustment: of the logits before a token is chosen (`cft/decoding`), greedily or not.
    """

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    prompt: Prompt
    grader: Grader
    max_positions: int
    adjustment: Adjustment | None = None

    def solve(
        self,
        problems: Sequence[Problem],
        *,
        request: SampleRequest,
        title: str = "",
        on_done: Callable[[], None] | None = None,
    ) -> list[Sample]:
        """All samples of all problems, by problem and sample number, each with the room that its prompt leaves.

        on_done: called after each sample, without a progress bar; else a bar with the title is shown.

        Raises ValueError for a problem without room: check with `cft/evaluation/room.py` first, since not run is not wrong.
        """
        if on_done is None:
            with progress(title, total=len(problems) * (1 + request.num_samples)) as bar:
                return self.solve(problems, request=request, on_done=bar.advance)
        prompts = [np.asarray(self.prompt.ids(self.tokenizer, p.question), dtype=np.int32) for p in problems]
        if without := [p.id for p, ids in zip(problems, prompts, strict=True) if len(ids) >= self.max_positions]:
            raise ValueError(f"problems without room in the context of {self.max_positions} tokens: {without}")
        forks = []
        done: dict[tuple[int, int], Completion] = {}
        for i, ids in enumerate(prompts):
            sequence = TokenSequence(ids, len(ids))  # one object, so that engines compute the shared prompt once
            for sample in range(GREEDY_SAMPLE, request.num_samples):
                sampling = GREEDY if self.adjustment is None else Sampling(adjustment=self.adjustment)
                if sample != GREEDY_SAMPLE:
                    purpose = f"sample\x1f{problems[i].id}\x1f{sample}"
                    sampling = Sampling(
                        request.temperature, request.top_p, request.seed, purpose, adjustment=self.adjustment
                    )
                forks.append(Fork(sequence, len(ids), None, sampling, (i, sample), self.max_positions - len(ids)))
        forks.sort(key=lambda fork: fork.prefix_len)
        for key, completion in self.engine.run(ListSource(forks), budget=Budget(request.max_new_tokens)):
            done[key] = completion  # type: ignore[index]
            on_done()
        keys = sorted(done)
        entropy = self._entropies(prompts, done)
        verdicts = self.grader([(done[key], problems[key[0]].answer) for key in keys])
        return [
            Sample(
                problems[i],
                sample,
                done[i, sample],
                outcome,
                extracted,
                entropy.get((i, sample), float("nan")),
            )
            for (i, sample), (outcome, extracted) in zip(keys, verdicts, strict=True)
        ]

    def _entropies(
        self, prompts: Sequence[np.ndarray], done: Mapping[tuple[int, int], Completion]
    ) -> dict[tuple[int, int], float]:
        """Mean entropy of each non-empty greedy response; NaN if the engine does not provide it."""
        keys = [key for key, completion in done.items() if key[1] == GREEDY_SAMPLE and len(completion.ids)]
        sequences = [
            TokenSequence(np.concatenate([prompts[i], done[i, sample].ids]), len(prompts[i])) for i, sample in keys
        ]
        return {keys[j]: float(top.entropy_R.mean()) for j, top in self.engine.score_all(sequences, k=1)}


def summarize(samples: Sequence[Sample], *, seed: int) -> tuple[dict[str, Interval], dict[str, list[Any]]]:
    """(metric -> mean and 95 % bootstrap interval over problems, per-problem values in the order of problem ids).

    accuracy, response_tokens, entropy, cut_off_rate and undecided_rate are of the greedy response; avg_at_n, pass_at_k,
    maj_at_k, distinct_n and self_bleu of the n sampled ones, with k over powers of two, and n. avg_at_n, the fraction of right
    samples, equals pass_at_1; it is the usual name for small competitions. An undecided response counts as not right in
    accuracy, pass@k and maj@k; `verdict_counts` lists it separately.
    Any other pass@k can be computed from `num_right`, the right samples of each problem (`cft/report/frames.py`).
    """
    by_problem: dict[str, list[Sample]] = {}
    for sample in samples:
        by_problem.setdefault(sample.problem.id, []).append(sample)
    ids = sorted(by_problem)
    values: dict[str, list[float]] = {}
    for problem_id in ids:
        for name, value in _problem_values(by_problem[problem_id]).items():
            values.setdefault(name, []).append(value)
    intervals = {
        f"eval/{name}": _interval(name, column, seed=seed) for name, column in values.items() if name != "num_right"
    }
    correct = [int(next(s for s in by_problem[i] if s.sample == GREEDY_SAMPLE).outcome == Outcome.RIGHT) for i in ids]
    per_problem: dict[str, list[Any]] = {"id": ids, "correct": correct}
    # A column with gaps cannot be resampled together with the same problems of another run.
    per_problem |= {name: column for name, column in values.items() if np.isfinite(column).all()}
    return intervals, per_problem


def _problem_values(samples: Sequence[Sample]) -> dict[str, float]:
    greedy = next(s for s in samples if s.sample == GREEDY_SAMPLE)
    drawn = [s for s in samples if s.sample != GREEDY_SAMPLE]
    values = {
        "accuracy": float(greedy.outcome == Outcome.RIGHT),
        "response_tokens": float(len(greedy.completion.ids)),
        "entropy": greedy.entropy,
        "cut_off_rate": float(greedy.completion.finish == "length"),
        "undecided_rate": float(greedy.outcome == Outcome.UNDECIDED),
    }
    n = len(drawn)
    right = [s.outcome == Outcome.RIGHT for s in drawn]
    if n > 1:
        values[f"avg_at_{n}"] = sum(right) / n
    for k in _sample_counts(n, smallest=1):
        values[f"pass_at_{k}"] = pass_at_k(n, sum(right), k)
    for k in _sample_counts(n, smallest=4):  # with two votes, no majority differs from a single sample
        values[f"maj_at_{k}"] = maj_at_k([s.extracted for s in drawn], right, k=k)
    if n > 1:
        ids = [s.completion.ids.tolist() for s in drawn]
        values |= {"distinct_1": distinct_n(ids, n=1), "distinct_2": distinct_n(ids, n=2), "self_bleu": self_bleu(ids)}
    if n:
        values["num_right"] = float(sum(right))
        values["sampled_cut_off_rate"] = float(np.mean([s.completion.finish == "length" for s in drawn]))
        values["sampled_undecided_rate"] = float(np.mean([s.outcome == Outcome.UNDECIDED for s in drawn]))
    return values


def _sample_counts(n: int, *, smallest: int) -> list[int]:
    """Powers of two from `smallest` up to n, and n itself."""
    powers = [2**i for i in range(n.bit_length()) if smallest <= 2**i <= n]
    return powers if n < 2 or n in powers else [*powers, n]


def _interval(name: str, column: Sequence[float], *, seed: int) -> Interval:
    """Mean over the problems that have a value (an empty response has no entropy); NaN if none has."""
    known = [value for value in column if not np.isnan(value)]
    if not known:
        return Interval(float("nan"), float("nan"), float("nan"))
    return bootstrap_interval(known, seed=seed, rate=False if is_unbounded(name) else None)


def verdict_counts(samples: Sequence[Sample]) -> dict[str, int]:
    """Greedy responses by outcome: right, wrong, cut off, undecided; they add up to the problems that were run."""
    greedy = [sample.outcome for sample in samples if sample.sample == GREEDY_SAMPLE]
    counted = (Outcome.RIGHT, Outcome.WRONG, Outcome.CUT_OFF, Outcome.UNDECIDED)
    return {outcome.name.lower().replace("_", " "): greedy.count(outcome) for outcome in counted}


def accuracy_sentence(counts: Mapping[str, int], *, not_run: int = 0) -> str:
    """The denominator of accuracy, and its bounds given the undecided responses. counts: from `verdict_counts`."""
    total = sum(counts.values())
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    text = f"Accuracy: {counts['right']} right of {total} problems run ({told}"
    text += f"; {not_run} not run, in no rate)." if not_run else ")."
    if unknown := counts["undecided"]:
        low, high = counts["right"] / total, (counts["right"] + unknown) / total
        text += (
            f" The verifier could not decide {unknown}: they count as not right; decided, accuracy would lie between "
            f"{low:.3f} and {high:.3f}."
        )
    return text


def write_samples(path: Path, samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase) -> None:
    records = [
        {
            "problem_id": s.problem.id,
            "sample": s.sample,
            "problem": s.problem.question,
            "answer": s.problem.answer,
            "response": decode(tokenizer, s.completion.ids),
            "response_ids": s.completion.ids.tolist(),
            "extracted": s.extracted,
            "outcome": int(s.outcome),
            "finish": s.completion.finish,
        }
        for s in samples
    ]
    table = pa.Table.from_pylist(records, schema=SAMPLE_SCHEMA)
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
