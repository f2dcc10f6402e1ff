"""One unit of annotation: problems in, evidence rows and a record of every problem out.

solve (greedy, or the data's own solutions) -> verify -> keep the correct -> score -> alternatives -> counterfactuals
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cft.annotation.counterfactual import (
    Evidence,
    ListSource,
    Tally,
    alternatives,
    fresh_evidence,
    run_counterfactuals,
    stored_evidence,
)
from cft.annotation.store import ProblemRecord
from cft.files import sha256_json
from cft.models.text import char_spans, decode
from cft.prompts.chat import TextError, response_ids
from cft.types import (
    GREEDY,
    AnnotatedResponse,
    Budget,
    Completion,
    Engine,
    Fork,
    Outcome,
    Problem,
    TokenSequence,
    TopTokens,
)
from cft.verifiers.grader import Grader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cft.prompts.chat import Prompt

NEAR_LIMIT = 0.9  # a response longer than this share of the limit leaves its counterfactuals no room

_STATUS = {
    Outcome.WRONG: "wrong",
    Outcome.UNDECIDED: "undecided",
    Outcome.CUT_OFF: "cut off",
}
_BROKEN_OFF = {"length": "cut off", "memory": "out of memory"}


@dataclass(frozen=True, slots=True)
class Unit:
    rows: list[AnnotatedResponse]
    problems: list[ProblemRecord]
    counts: dict[str, int]
    compute: dict[str, float]


@dataclass(frozen=True, slots=True)
class Solved:
    """A problem with the response to annotate, or the status that says why there is none."""

    problem: Problem
    sequence: TokenSequence
    completion: Completion | None
    status: str
    extracted: str


@dataclass(slots=True)
class Annotator:
    """All that a unit needs. max_positions: the model's context length; longer prompts are skipped and counted.
    padding_ids: of the model's vocabulary those that are no token of the tokenizer; never alternatives."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    prompt: Prompt
    grader: Grader
    budget: Budget
    eos_ids: tuple[int, ...]
    max_positions: int
    num_alternatives: int
    short_circuit: bool
    replay_fraction: float
    responses: Literal["solve", "given"] = "solve"
    padding_ids: frozenset[int] = frozenset()
    on_solved: Callable[[Completion], None] = field(default=lambda completion: None)
    on_plan: Callable[[Sequence[Solved]], None] = field(default=lambda kept: None)
    on_fork: Callable[[Completion], None] = field(default=lambda completion: None)

    def fresh(self, problems: Sequence[Problem]) -> Unit:
        """Solve and annotate problems nothing is known of."""
        started = time.monotonic()
        solved = self._solve(problems)
        solve_s = time.monotonic() - started
        kept = [s for s in solved if s.status == "annotated"]
        self.on_plan(kept)
        scored = self._ranked([s.sequence for s in kept], known=[s.completion.top for s in kept if s.completion])
        evidence = [
            fresh_evidence(
                response_id=_response_id(s),
                answer=s.problem.answer,
                sequence=s.sequence,
                alt_ids_RK=alt_ids,
                # A given token is not the model's choice: replaying it controls nothing.
                replay_fraction=self.replay_fraction if self.responses == "solve" else 0.0,
            )
            for s, (_, alt_ids, _) in zip(kept, scored, strict=True)
        ]
        tally = self._run(evidence)
        rows = [
            self._row(s, top, alt_logprob, done)
            for s, (top, _, alt_logprob), done in zip(kept, scored, evidence, strict=True)
        ]
        decoded = sum(s.completion.num_decoded for s in solved if s.completion) if self.responses == "solve" else 0
        return Unit(
            rows,
            [_record(s, self.tokenizer) for s in solved],
            _counts(solved, tally),
            {
                "solve_tokens": decoded,
                "solve_seconds": round(solve_s, 3),
                **_compute(tally, seconds=time.monotonic() - started - solve_s),
            },
        )

    def filled(self, rows: Sequence[AnnotatedResponse]) -> tuple[list[AnnotatedResponse], Tally, dict[str, float]]:
        """Try the cells of stored rows that are wanted and untried: more alternatives, or what short-circuit left."""
        started = time.monotonic()
        wider = self._widened(rows)
        evidence = [stored_evidence(row, alt_ids_RK=alt_ids) for row, (alt_ids, _) in zip(rows, wider, strict=True)]
        tally = self._run(evidence)
        filled = [
            replace(
                row,
                alt_ids=done.alt_ids_RK,
                alt_logprob=alt_logprob,
                alt_answer=done.answer_RK,
                alt_tokens=done.tokens_RK,
                alt_outcome=done.outcome_RK,
            )
            for row, (_, alt_logprob), done in zip(rows, wider, evidence, strict=True)
        ]
        return filled, tally, _compute(tally, seconds=time.monotonic() - started)

    def _run(self, evidence: list[Evidence]) -> Tally:
        return run_counterfactuals(
            self.engine,
            evidence,
            grader=self.grader,
            budget=self.budget,
            short_circuit=self.short_circuit,
            on_fork=self.on_fork,
        )

    def _solve(self, problems: Sequence[Problem]) -> list[Solved]:
        skipped: dict[int, str] = {}  # why a problem has no response
        sequences = [self._prompt_sequence(problem, i, skipped) for i, problem in enumerate(problems)]
        completions: dict[int, Completion] = {}
        if self.responses == "given":
            for i, problem in enumerate(problems):
                if i not in skipped:
                    try:
                        completions[i] = self._given(problem)
                    except TextError as error:
                        skipped[i] = str(error)
        else:
            forks = [
                Fork(sequence, sequence.prompt_len, None, GREEDY, i, top_k=self._num_ranks)
                for i, sequence in enumerate(sequences)
                if i not in skipped
            ]
            # By length, so that a batch pads little.
            forks.sort(key=lambda fork: len(fork.sequence.ids))
            for key, completion in self.engine.run(ListSource(forks), budget=self.budget):
                completions[key] = completion  # type: ignore[index]
                self.on_solved(completion)
        order = sorted(completions)
        verdicts = dict(zip(order, self.grader([(completions[i], problems[i].answer) for i in order]), strict=True))
        return [
            self._classified(problem, sequence, completions[i], verdicts[i])
            if i in completions
            else Solved(problem, sequence, None, skipped[i], "")
            for i, (problem, sequence) in enumerate(zip(problems, sequences, strict=True))
        ]

    def _classified(
        self,
        problem: Problem,
        sequence: TokenSequence,
        completion: Completion,
        verdict: tuple[Outcome, str],
    ) -> Solved:
        outcome, extracted = verdict
        if completion.finish in _BROKEN_OFF:
            status = _BROKEN_OFF[completion.finish]
        elif outcome != Outcome.RIGHT:
            status = _STATUS[outcome]
        elif len(completion.ids) > NEAR_LIMIT * self.budget.max_new_tokens:
            status = "near limit"
        else:
            status = "annotated"
        whole = TokenSequence(np.concatenate([sequence.ids, completion.ids]), sequence.prompt_len)
        return Solved(problem, whole, completion, status, extracted)

    def _prompt_sequence(self, problem: Problem, index: int, skipped: dict[int, str]) -> TokenSequence:
        try:
            ids = np.asarray(self.prompt.ids(self.tokenizer, problem.question), dtype=np.int32)
        except TextError:
            ids, skipped[index] = np.zeros(0, dtype=np.int32), "question not encodable"
        if len(ids) > self.max_positions - self.budget.max_new_tokens:
            skipped[index] = "prompt too long"
        return TokenSequence(ids, len(ids))

    def _given(self, problem: Problem) -> Completion:
        """The data's own solution as a response, closed as the prompt says. Raises TextError with the status."""
        if not problem.solution:
            raise TextError("no solution given")
        end = self.prompt.end_id(self.tokenizer)
        end = self.eos_ids[0] if end is None else end
        try:
            ids = response_ids(self.tokenizer, problem.solution, ends=self.eos_ids)
        except TextError as error:
            raise TextError("solution not encodable") from error
        kept = np.asarray([*ids, end], dtype=np.int32)[: self.budget.max_new_tokens]
        return Completion(kept, "stop" if len(kept) > len(ids) else "length", 0)

    @property
    def _num_ranks(self) -> int:
        """The most probable tokens of a position that its alternatives are among."""
        return self.num_alternatives + len(self.eos_ids)

    def _ranked(
        self, sequences: Sequence[TokenSequence], *, known: Sequence[TopTokens | None]
    ) -> list[tuple[TopTokens, NDArray[np.int32], NDArray[np.float32]]]:
        """The model's scores of responses, and their alternatives: ids and log-probs [R, K]. known: of each, what the pass
        that decoded it gave; the others are scored."""
        tops = dict(enumerate(known))
        missing = [index for index, top in tops.items() if top is None or top.top_ids_RK.shape[1] < self._num_ranks]
        tops |= self._scored(sequences, missing, k=self._num_ranks)
        padding = list(self.padding_ids)
        hidden = [i for i, top in tops.items() if top and padding and np.isin(top.top_ids_RK, padding).any()]
        tops |= self._scored(sequences, hidden, k=self._num_ranks + len(padding))
        return [self._with_alternatives(sequence, tops[i]) for i, sequence in enumerate(sequences)]

    def _scored(self, sequences: Sequence[TokenSequence], chosen: list[int], *, k: int) -> dict[int, TopTokens]:
        if not chosen:
            return {}
        return {chosen[j]: top for j, top in self.engine.score_all([sequences[i] for i in chosen], k=k)}

    def _with_alternatives(
        self, sequence: TokenSequence, top: TopTokens | None
    ) -> tuple[TopTokens, NDArray[np.int32], NDArray[np.float32]]:
        assert top is not None  # every sequence was decoded with its ranks, or scored
        ids, logprob = alternatives(
            sequence.ids[sequence.prompt_len :],
            top,
            k=self.num_alternatives,
            eos_ids=self.eos_ids,
            padding_ids=self.padding_ids,
        )
        return top, ids, logprob

    def _widened(self, rows: Sequence[AnnotatedResponse]) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Alternatives of stored rows; scored again only where more of them are wanted than are stored."""
        short = [i for i, row in enumerate(rows) if self.num_alternatives > row.alt_ids.shape[1]]
        found = self._ranked([_sequence(rows[i]) for i in short], known=[None] * len(short))
        wider = {i: (row.alt_ids, row.alt_logprob) for i, row in enumerate(rows)}
        for i, (_, ids_RK, logprob_RK) in zip(short, found, strict=True):
            # Another pass of an engine that is not exact may rank near equals otherwise.
            wider[i] = (ids_RK, logprob_RK) if self.engine.exact else _stored_first(rows[i], ids_RK, logprob_RK)
        return [wider[i] for i in range(len(rows))]

    def _row(
        self, solved: Solved, top: TopTokens, alt_logprob: NDArray[np.float32], evidence: Evidence
    ) -> AnnotatedResponse:
        assert solved.completion is not None
        text, spans = char_spans(self.tokenizer, solved.completion.ids)
        return AnnotatedResponse(
            problem_id=solved.problem.id,
            response_id=evidence.response_id,
            problem=solved.problem.question,
            answer=solved.problem.answer,
            response=text,
            finish=solved.completion.finish,
            prompt_ids=solved.sequence.ids[: solved.sequence.prompt_len],
            response_ids=solved.completion.ids,
            char_span=spans,
            logprob=top.logprob_R,
            entropy=top.entropy_R,
            alt_ids=evidence.alt_ids_RK,
            alt_logprob=alt_logprob,
            alt_answer=evidence.answer_RK,
            alt_tokens=evidence.tokens_RK,
            alt_outcome=evidence.outcome_RK,
            replay_outcome=evidence.replay_R,
        )


def _sequence(row: AnnotatedResponse) -> TokenSequence:
    return TokenSequence(np.concatenate([row.prompt_ids, row.response_ids]), len(row.prompt_ids))


def _response_id(solved: Solved) -> str:
    assert solved.completion is not None
    return sha256_json([solved.problem.id, solved.completion.ids.tolist()])[:16]


def _record(solved: Solved, tokenizer: PreTrainedTokenizerBase) -> ProblemRecord:
    completion = solved.completion
    if completion is None:
        return ProblemRecord(solved.problem.id, solved.status, "", "", 0, 0)
    return ProblemRecord(
        solved.problem.id,
        solved.status,
        decode(tokenizer, completion.ids),
        solved.extracted,
        len(completion.ids),
        completion.num_decoded,
    )


def _counts(solved: Sequence[Solved], tally: Tally) -> dict[str, int]:
    statuses: dict[str, int] = {}
    for s in solved:
        statuses[s.status] = statuses.get(s.status, 0) + 1
    settled = sum(s.completion.num_ties_rescored for s in solved if s.completion)
    return {"problems": len(solved), **statuses, **tally_counts(tally, ties_in_solving=settled)}


def tally_counts(tally: Tally, *, ties_in_solving: int = 0) -> dict[str, int]:
    return {
        "forks": tally.forks,
        "replays": tally.replays,
        "replay_flips": tally.replay_flips,
        "num_ties_rescored": tally.num_ties_rescored + ties_in_solving,
    }


def _compute(tally: Tally, *, seconds: float) -> dict[str, float]:
    return {
        "counterfactual_tokens": tally.tokens,
        "speculative_tokens": tally.speculative_tokens,
        "counterfactual_seconds": round(seconds, 3),
    }


def _stored_first(
    row: AnnotatedResponse, ids_RK: NDArray[np.int32], logprob_RK: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Alternatives in K columns whose first ones are the stored ones, whatever rounding made of the ranks since."""
    width = ids_RK.shape[1]
    ids, logprobs = ids_RK.copy(), logprob_RK.copy()
    for t in range(len(ids)):
        new = ~np.isin(ids_RK[t], row.alt_ids[t])
        ids[t] = [*row.alt_ids[t], *ids_RK[t][new]][:width]
        logprobs[t] = [*row.alt_logprob[t], *logprob_RK[t][new]][:width]
    return ids, logprobs
