"""The responses that are annotated: the model's own greedy ones or those of the data, and of these the right or the wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cft.annotation.counterfactual import ListSource
from cft.annotation.store import ProblemRecord
from cft.files import sha256_json
from cft.models.text import decode
from cft.prompts.chat import Chat, TextError, response_ids
from cft.prompts.conversation import conversation, prompt_ids
from cft.types import GREEDY, Budget, Completion, Engine, Fork, Outcome, Problem, ThinkingTags, TokenSequence
from cft.verifiers.grader import Grader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cft.prompts.chat import Prompt

Responses = Literal["solve", "given", "wrong", "given_wrong", "rollouts"]
GIVEN: tuple[Responses, ...] = ("given", "given_wrong")  # of the data; the others are the model's own greedy ones
TOO_LONG = "prompt too long"
TAIL = 32  # tokens of a prompt's end that a tag is looked for in
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
    thinking: ThinkingTags

    def __call__(self, problems: Sequence[Problem], *, on_solved: Callable[[Completion], None]) -> list[Solved]:
        skipped: dict[int, str] = {}  # why a problem has no response
        completions: dict[int, Completion] = {}
        if self.responses in GIVEN:
            sequences = self._given(problems, skipped, completions)
        else:
            sequences = [self._asked(problem, i, skipped) for i, problem in enumerate(problems)]
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

    @property
    def _longest(self) -> int:
        return self.max_positions - self.budget.max_new_tokens

    def _asked(self, problem: Problem, index: int, skipped: dict[int, str]) -> TokenSequence:
        sequence, why_not = asked_sequence(problem, self.tokenizer, self.prompt, longest=self._longest)
        if why_not:
            skipped[index] = why_not
        return sequence

    def _given(
        self, problems: Sequence[Problem], skipped: dict[int, str], completions: dict[int, Completion]
    ) -> list[TokenSequence]:
        """Prompts of the data's own responses, which are put into `completions`."""
        given = GivenResponses(
            self.tokenizer,
            self.prompt,
            eos_ids=self.eos_ids,
            max_new_tokens=self.budget.max_new_tokens,
            thinking=self.thinking,
        )
        sequences = []
        for i, problem in enumerate(problems):
            try:
                ids, completion = given(problem)
            except TextError as error:
                ids, skipped[i] = np.zeros(0, dtype=np.int32), str(error)
            else:
                completions[i] = completion
            if len(ids) > self._longest:
                skipped[i] = TOO_LONG
            sequences.append(TokenSequence(ids, len(ids)))
            if i in skipped:
                completions.pop(i, None)
        return sequences


def asked_sequence(
    problem: Problem, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, longest: int
) -> tuple[TokenSequence, str]:
    """A problem's prompt, and the status that says why it cannot be answered, or "". longest: tokens it may have."""
    try:
        ids = np.asarray(asked(problem, tokenizer, prompt), dtype=np.int32)
    except TextError as error:
        return TokenSequence(np.zeros(0, dtype=np.int32), 0), str(error)
    return TokenSequence(ids, len(ids)), TOO_LONG if len(ids) > longest else ""


def asked(problem: Problem, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Ids of a problem's prompt: its question, or its conversation up to the last turn. Raises TextError with the status."""
    if problem.messages:
        chat = _chat(prompt)
        try:
            turns = _with_system(chat, problem.messages[:-1])
            return prompt_ids(chat, tokenizer, turns, tools=problem.tools)
        except TextError as error:
            raise error.of("conversation") from error
    try:
        return prompt.ids(tokenizer, problem.question)
    except TextError as error:
        raise error.of("question") from error


class GivenResponses:
    """The data's own responses as token ids, closed as the prompt says.

    A conversation is written by the chat template as a whole, and its last turn is the response. Elsewhere the solution is
    encoded behind the question's prompt; where that prompt has opened the thinking already, the solution's own opening tag is
    left out.

    Args:
        tokenizer: Of the model.
        prompt: What responses answer.
        eos_ids: Every token that ends a response.
        max_new_tokens: Of a response; a longer one is cut off.
        thinking: Tags of the thinking, which may be tokens of their own.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        *,
        eos_ids: Sequence[int],
        max_new_tokens: int,
        thinking: ThinkingTags,
    ) -> None:
        self.tokenizer, self.prompt = tokenizer, prompt
        self.eos_ids, self.max_new_tokens = eos_ids, max_new_tokens
        self.thinking = thinking

    def __call__(self, problem: Problem) -> tuple[NDArray[np.int32], Completion]:
        """(ids of the prompt, the response). Raises TextError with the status."""
        if problem.messages:
            return self._turn(problem)
        if not problem.solution:
            raise TextError("no solution given")
        ids = asked(problem, self.tokenizer, self.prompt)
        end = self.prompt.end_id(self.tokenizer)
        end = self.eos_ids[0] if end is None else end
        tags = [tag for tag in self.thinking if tag]
        try:
            text = self._behind(ids, problem.solution)
            response = response_ids(self.tokenizer, text, ends=self.eos_ids, written=tags)
        except TextError as error:
            raise error.of("solution") from error
        return np.asarray(ids, dtype=np.int32), self._completion([*response, end])

    def _turn(self, problem: Problem) -> tuple[NDArray[np.int32], Completion]:
        chat = _chat(self.prompt)
        try:
            turns = _with_system(chat, problem.messages)
            made = conversation(chat, self.tokenizer, turns, tools=problem.tools, which="last")
        except TextError as error:
            raise error.of("conversation") from error
        turn = made.turns[-1]
        return made.encoded.ids[: turn.start], self._completion(made.encoded.ids[turn.start : turn.end].tolist())

    def _completion(self, ids: list[int]) -> Completion:
        kept = ids[: self.max_new_tokens]
        return Completion(np.asarray(kept, dtype=np.int32), "stop" if kept[-1] in self.eos_ids else "length", 0)

    def _behind(self, prompt_ids: Sequence[int], solution: str) -> str:
        """The solution without a tag that the prompt ends with."""
        opened = self.thinking.open
        if not opened or not solution.lstrip().startswith(opened):
            return solution
        before = str(self.tokenizer.decode(list(prompt_ids)[-TAIL:], skip_special_tokens=False))
        if not before.rstrip().endswith(opened):
            return solution
        rest = solution.lstrip().removeprefix(opened)
        return rest if before.endswith(opened) else rest.lstrip()


def _chat(prompt: Prompt) -> Chat:
    if not isinstance(prompt, Chat):
        raise TextError("conversation without a chat template (prompt=chat)")
    return prompt


def _with_system(prompt: Chat, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """With the prompt's system turn, where there is one and the conversation brings none."""
    if prompt.system and messages[0]["role"] != "system":
        return [*prompt.asked("")[:1], *messages]
    return list(messages)
