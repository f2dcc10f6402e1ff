"""Makes rollouts (`cft/annotation/rollouts.py`): takes problems, returns a row per response and a record per problem."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cft.annotation.annotator import Unit
from cft.annotation.counterfactual import ListSource
from cft.annotation.responses import asked_sequence
from cft.annotation.rollouts import VERDICTS, RolloutDesign, pass_rate
from cft.annotation.rows import without_evidence
from cft.annotation.store import ProblemRecord
from cft.files import sha256_json
from cft.models.text import char_spans
from cft.types import (
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


@dataclass(slots=True)
class RollingOut:
    """Makes units of rollouts; fields as in `cft.annotation.annotator.Annotator`.

    on_done: called after each response.
    """

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    prompt: Prompt
    grader: Grader
    budget: Budget
    max_positions: int
    design: RolloutDesign
    on_done: Callable[[Completion], None] = field(default=lambda completion: None)

    def fresh(self, problems: Sequence[Problem]) -> Unit:
        """Decode and grade all responses to the given problems; rows are sorted by problem and sample number."""
        started = time.monotonic()
        longest = self.max_positions - self.budget.max_new_tokens
        prompts, skipped = [], dict[int, str]()
        for i, problem in enumerate(problems):
            sequence, why_not = asked_sequence(problem, self.tokenizer, self.prompt, longest=longest)
            prompts.append(sequence)
            if why_not:
                skipped[i] = why_not
        done = self._decoded(problems, prompts, skipped)
        keys = sorted(done)
        graded = self.grader([(done[key], problems[key[0]].answer) for key in keys])
        outcomes = {key: outcome for key, (outcome, _) in zip(keys, graded, strict=True)}
        whole = [key for key in keys if len(done[key].ids)]  # responses without a single token have no row
        tops = self._scored(
            [_whole(prompts[i], done[i, sample]) for i, sample in whole], [done[key].top for key in whole]
        )
        rows = [
            self._row(problems[i], prompts[i], done[i, sample], top, sample=sample, outcome=outcomes[i, sample])
            for (i, sample), top in zip(whole, tops, strict=True)
        ]
        records = [
            _record(problem, [outcomes[key] for key in keys if key[0] == i], skipped.get(i, ""))
            for i, problem in enumerate(problems)
        ]
        counts = Counter(VERDICTS[outcome].replace(" ", "_") for outcome in outcomes.values())
        return Unit(
            rows,
            records,
            {
                "problems": len(problems),
                "rollouts": len(done),
                **{f"rollouts_{name}": count for name, count in sorted(counts.items())},
                "num_ties_rescored": sum(completion.num_ties_rescored for completion in done.values()),
            },
            {
                "solve_tokens": sum(completion.num_decoded for completion in done.values()),
                "solve_seconds": round(time.monotonic() - started, 3),
            },
        )

    def _decoded(
        self, problems: Sequence[Problem], prompts: Sequence[TokenSequence], skipped: Mapping[int, str]
    ) -> dict[tuple[int, int], Completion]:
        """Responses by problem index and sample number. Responses to one problem share its sequence, and so its KV cache."""
        forks = [
            Fork(prompt, prompt.prompt_len, None, self.design.sampling(problem.id, sample), (i, sample), top_k=1)
            for i, (problem, prompt) in enumerate(zip(problems, prompts, strict=True))
            if i not in skipped
            for sample in self.design.samples()
        ]
        forks.sort(key=lambda fork: fork.prefix_len)
        done: dict[tuple[int, int], Completion] = {}
        for key, completion in self.engine.run(ListSource(forks), budget=self.budget):
            done[key] = completion  # type: ignore[index]
            self.on_done(completion)
        return done

    def _scored(self, sequences: Sequence[TokenSequence], known: Sequence[TopTokens | None]) -> list[TopTokens]:
        """Log-probs and entropies of responses; responses that were decoded without them are scored."""
        tops = dict(enumerate(known))
        missing = [index for index, top in tops.items() if top is None]
        if missing:
            found = self.engine.score_all([sequences[index] for index in missing], k=1)
            tops |= {missing[j]: top for j, top in found}
        return [top for _, top in sorted(tops.items()) if top is not None]

    def _row(
        self,
        problem: Problem,
        prompt: TokenSequence,
        completion: Completion,
        top: TopTokens,
        *,
        sample: int,
        outcome: Outcome,
    ) -> AnnotatedResponse:
        text, spans = char_spans(self.tokenizer, completion.ids)
        return AnnotatedResponse(
            problem_id=problem.id,
            # Identical responses to one problem are separate rows.
            response_id=sha256_json([problem.id, completion.ids.tolist(), sample])[:16],
            problem=problem.question,
            answer=problem.answer,
            response=text,
            finish=completion.finish,
            prompt_ids=prompt.ids,
            response_ids=completion.ids,
            char_span=spans,
            logprob=top.logprob_R,
            entropy=top.entropy_R,
            **without_evidence(len(completion.ids)),
            verdict=VERDICTS[outcome],
            sample=sample,
        )


def _whole(prompt: TokenSequence, completion: Completion) -> TokenSequence:
    return TokenSequence(np.concatenate([prompt.ids, completion.ids]), prompt.prompt_len)


def _record(problem: Problem, outcomes: Sequence[Outcome], skipped: str) -> ProblemRecord:
    rate = pass_rate(VERDICTS[outcome] for outcome in outcomes)
    right, undecided = outcomes.count(Outcome.RIGHT), outcomes.count(Outcome.UNDECIDED)
    status = skipped or _status(rate)
    return ProblemRecord(problem.id, status, "", "", 0, 0, len(outcomes), right, undecided, rate)


def _status(rate: float) -> str:
    if np.isnan(rate):
        return "none decided"
    return "all right" if rate == 1 else "some right" if rate > 0 else "none right"
