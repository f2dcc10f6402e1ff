"""The responses that are annotated: the model's own greedy ones or those of the data, and of these the right or the wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from cft.annotation.counterfactual import ListSource
from cft.annotation.store import ProblemRecord
from cft.files import sha256_json
from cft.models.text import decode
from cft.prompts.chat import TextError, response_ids
from cft.types import GREEDY, Budget, Completion, Engine, Fork, Outcome, Problem, TokenSequence
from cft.verifiers.grader import Grader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cft.prompts.chat import Prompt

Responses = Literal["solve", "given", "wrong", "given_wrong"]
GIVEN: tuple[Responses, ...] = ("given", "given_wrong")  # of the data; the others are the model's own greedy ones
NEAR_LIMIT = 0.9  # a response longer than this share of the limit leaves its counterfactuals no room

_STATUS = {
    Outcome.RIGHT: "right",
    Outcome.WRONG: "wrong",
    Outcome.UNDECIDED: "undecided",
    Outcome.CUT_OFF: "cut off",
}
_BROKEN_OFF = {"length": "cut off", "memory": "out of memory"}


def wanted(responses: Responses) -> Outcome:
    """Of the responses that are annotated."""
    return Outcome.WRONG if responses in ("wrong", "given_wrong") else Outcome.RIGHT


@dataclass(frozen=True, slots=True)
class Solved:
    """A problem with the response to annotate, or the status that says why there is none."""

    problem: Problem
    sequence: TokenSequence
    completion: Completion | None
    status: str
    extracted: str

    def response_id(self) -> str:
        assert self.completion is not None
        return sha256_json([self.problem.id, self.completion.ids.tolist()])[:16]

    def record(self, tokenizer: PreTrainedTokenizerBase) -> ProblemRecord:
        completion = self.completion
        if completion is None:
            return ProblemRecord(self.problem.id, self.status, "", "", 0, 0)
        return ProblemRecord(
            self.problem.id,
            self.status,
            decode(tokenizer, completion.ids),
            self.extracted,
            len(completion.ids),
            completion.num_decoded,
        )


@dataclass(frozen=True, slots=True)
class Solving:
    """Problems to responses with their verdicts.

    max_positions: the model's context length; longer prompts are skipped and counted. top_k: of each position of a decoded
    response, see `Fork.top_k`.
    """

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    prompt: Prompt
    grader: Grader
    budget: Budget
    eos_ids: tuple[int, ...]
    max_positions: int
    responses: Responses
    top_k: int

    def __call__(self, problems: Sequence[Problem], *, on_solved: Callable[[Completion], None]) -> list[Solved]:
        skipped: dict[int, str] = {}  # why a problem has no response
        sequences = [self._prompt_sequence(problem, i, skipped) for i, problem in enumerate(problems)]
        completions: dict[int, Completion] = {}
        if self.responses in GIVEN:
            for i, problem in enumerate(problems):
                if i not in skipped:
                    try:
                        completions[i] = self._given(problem)
                    except TextError as error:
                        skipped[i] = str(error)
        else:
            forks = [
                Fork(sequence, sequence.prompt_len, None, GREEDY, i, top_k=self.top_k)
                for i, sequence in enumerate(sequences)
                if i not in skipped
            ]
            # By length, so that a batch pads little.
            forks.sort(key=lambda fork: len(fork.sequence.ids))
            for key, completion in self.engine.run(ListSource(forks), budget=self.budget):
                completions[key] = completion  # type: ignore[index]
                on_solved(completion)
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
        elif outcome != wanted(self.responses):
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
        return given_response(
            problem, self.tokenizer, self.prompt, eos_ids=self.eos_ids, max_new_tokens=self.budget.max_new_tokens
        )


def given_response(
    problem: Problem,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    eos_ids: Sequence[int],
    max_new_tokens: int,
) -> Completion:
    """The data's own solution as a response, closed as the prompt says. Raises TextError with the status."""
    if not problem.solution:
        raise TextError("no solution given")
    end = prompt.end_id(tokenizer)
    end = eos_ids[0] if end is None else end
    try:
        ids = response_ids(tokenizer, problem.solution, ends=eos_ids)
    except TextError as error:
        raise TextError("solution not encodable") from error
    kept = np.asarray([*ids, end], dtype=np.int32)[:max_new_tokens]
    return Completion(kept, "stop" if len(kept) > len(ids) else "length", 0)
