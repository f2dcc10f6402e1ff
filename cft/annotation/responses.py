"""The responses to annotate: the model's own greedy responses or those of the data, either the right or the wrong ones."""

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
GIVEN: tuple[Responses, ...] = ("given", "given_wrong")  # from the data; all others are decoded by the model
TOO_LONG = "prompt too long"
TAIL = 32  # tokens at the end of a prompt that are searched for a tag
NEAR_LIMIT = 0.9  # a response longer than this fraction of the limit leaves too little room for its counterfactuals

_STATUS = {
    Outcome.RIGHT: "right",
    Outcome.WRONG: "wrong",
    Outcome.UNDECIDED: "undecided",
    Outcome.CUT_OFF: "cut off",
}
_BROKEN_OFF = {"length": "cut off", "memory": "out of memory"}


def wanted(responses: Responses) -> Outcome:
    """The outcome that a response must have to be annotated."""
    return Outcome.WRONG if responses in ("wrong", "given_wrong") else Outcome.RIGHT


@dataclass(frozen=True, slots=True)
class Solved:
    """A problem with its response, and the status that says whether it is annotated or why not."""

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
    """Obtains a response to each problem and grades it.

    max_positions: the model's context length; problems with longer prompts are skipped and counted. top_k: number of most
    probable tokens to keep per position of a decoded response, see `Fork.top_k`.
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
            # Sorted by length to reduce padding.
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
        """Prompts of the data's own responses; adds the responses to `completions`."""
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
    """A problem's prompt, and the status that says why it cannot be answered, else "". longest: its token limit."""
    try:
        ids = np.asarray(asked(problem, tokenizer, prompt), dtype=np.int32)
    except TextError as error:
        return TokenSequence(np.zeros(0, dtype=np.int32), 0), str(error)
    return TokenSequence(ids, len(ids)), TOO_LONG if len(ids) > longest else ""


def asked(problem: Problem, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Ids of a problem's prompt: its question, or its conversation without the last turn. Raises TextError with the status."""
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
    """Encodes the data's own responses, with the end token of the prompt format.

    A conversation is rendered by the chat template as a whole; its last turn is the response. Otherwise the solution is encoded
    after the question's prompt; if that prompt already ends with the opening thinking tag, the solution's own opening tag is
    dropped.

    Args:
        tokenizer: The model's tokenizer.
        prompt: The prompt format.
        eos_ids: Every token that ends a response.
        max_new_tokens: Token limit of a response; longer ones are cut off.
        thinking: Tags of the thinking, which may be single tokens.
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
        """Ids of the prompt, and the response. Raises TextError with the status."""
        if problem.messages:
            return self._turn(problem)
        if not problem.solution:
            raise TextError("no solution given")
        ids = asked(problem, self.tokenizer, self.prompt)
        end = self.prompt.end_id(self.tokenizer)
        end = self.eos_ids[0] if end is None else end
        tags = [tag for tag in self.thinking if tag]
        try:
            text = self._without_open_tag(ids, problem.solution)
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

    def _without_open_tag(self, prompt_ids: Sequence[int], solution: str) -> str:
        """The solution without its opening thinking tag if the prompt already ends with that tag."""
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
    """The messages, with the prompt's system turn added if it has one and the conversation has none."""
    if prompt.system and messages[0]["role"] != "system":
        return [*prompt.asked("")[:1], *messages]
    return list(messages)
