"""Annotates one unit: takes problems, returns rows with evidence and a record of every problem.

solve (greedy, or the data's own solutions) -> verify -> keep the correct (or the wrong) responses -> score -> alternatives ->
positions -> counterfactuals
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cft.annotation.counterfactual import (
    Evidence,
    Tally,
    alternatives,
    fresh_evidence,
    run_counterfactuals,
    stored_evidence,
)
from cft.annotation.responses import GIVEN, Responses, Solved, Solving, wanted
from cft.annotation.sampled import Counts, SampleDesign, draw_samples, no_samples, stored_samples
from cft.annotation.search import choose_positions
from cft.annotation.store import ProblemRecord
from cft.models.text import char_spans
from cft.positions import All, Positions, ResponseView
from cft.types import (
    NO_THINKING,
    AnnotatedResponse,
    Budget,
    Completion,
    Engine,
    Outcome,
    Problem,
    ThinkingTags,
    TokenSequence,
    TopTokens,
)
from cft.verifiers.grader import Grader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cft.prompts.chat import Prompt


@dataclass(frozen=True, slots=True)
class Unit:
    rows: list[AnnotatedResponse]
    problems: list[ProblemRecord]
    counts: dict[str, int]
    compute: dict[str, float]


@dataclass(slots=True)
class Annotator:
    """Annotates units of problems.

    Args:
        engine: Decodes and scores.
        tokenizer: The model's tokenizer.
        prompt: The prompt format.
        grader: Grades completions.
        budget: Token limit of a response.
        eos_ids: Every token that ends a response.
        max_positions: The model's context length; problems with longer prompts are skipped and counted.
        num_alternatives: Number K of alternatives per position.
        short_circuit: Stop testing a position at its first right alternative.
        replay_fraction: Fraction of the positions with a self-replay control.
        responses: Which responses are annotated.
        positions: Which positions are tested.
        every_position: In stored rows, also test positions of which no alternative was tried yet.
        samples: Samples drawn in addition to the greedy continuations, None = none.
        thinking: Tags of the thinking, which given responses may contain as tokens.
        padding_ids: Ids of the model's vocabulary that are not tokens of the tokenizer; never alternatives.
        on_solved: Called after each response to a problem.
        on_plan: Called with the positions to test, [R] bool per response.
        on_fork: Called after each continuation.
    """

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
    responses: Responses = "solve"
    positions: Positions = field(default_factory=All)
    every_position: bool = True
    samples: SampleDesign | None = None
    thinking: ThinkingTags = NO_THINKING
    padding_ids: frozenset[int] = frozenset()
    on_solved: Callable[[Completion], None] = field(default=lambda completion: None)
    on_plan: Callable[[Sequence[NDArray[np.bool_]]], None] = field(default=lambda wanted: None)
    on_fork: Callable[[Completion], None] = field(default=lambda completion: None)

    def fresh(self, problems: Sequence[Problem]) -> Unit:
        """Solve and annotate new problems."""
        started = time.monotonic()
        solved = self._solving()(problems, on_solved=self.on_solved)
        solve_s = time.monotonic() - started
        rows, tally = self.tested([s for s in solved if s.status == "annotated"])
        decoded = sum(s.completion.num_decoded for s in solved if s.completion)
        return Unit(
            rows,
            [s.record(self.tokenizer) for s in solved],
            _counts(solved, tally),
            {
                "solve_tokens": decoded,
                "solve_seconds": round(solve_s, 3),
                **_compute(tally, seconds=time.monotonic() - started - solve_s),
            },
        )

    def tested(self, kept: Sequence[Solved]) -> tuple[list[AnnotatedResponse], Tally]:
        """Test the tokens of the kept responses; returns their rows and the work done."""
        scored = self._ranked([s.sequence for s in kept], known=[s.completion.top for s in kept if s.completion])
        views = [self._view(s, top) for s, (top, _, _) in zip(kept, scored, strict=True)]
        evidence, prefixes, tally = self._planned(kept, [alt_ids for _, alt_ids, _ in scored], views)
        self.on_plan([one.wanted_R for one in evidence])
        self._run(evidence, tally)
        counts = self._sampled(evidence, tally, [no_samples(*one.alt_ids_RK.shape) for one in evidence])
        return [
            replace(self._row(s, view, top, alt_logprob, done, prefix), **drawn)
            for s, view, (top, _, alt_logprob), done, prefix, drawn in zip(
                kept, views, scored, evidence, prefixes, counts, strict=True
            )
        ], tally

    def filled(self, rows: Sequence[AnnotatedResponse]) -> tuple[list[AnnotatedResponse], Tally, dict[str, float]]:
        """Test the missing cells of stored rows: more alternatives, or whole positions."""
        started = time.monotonic()
        wider = self._widened(rows)
        evidence = [
            stored_evidence(row, alt_ids_RK=alt_ids, every_position=self.every_position)
            for row, (alt_ids, _) in zip(rows, wider, strict=True)
        ]
        tally = self._run(evidence, Tally())
        widths = [alt_ids.shape[1] for alt_ids, _ in wider]
        stored = [stored_samples(row, k=k) if self.samples else {} for row, k in zip(rows, widths, strict=True)]
        counts = self._sampled(evidence, tally, stored)
        filled = [
            replace(
                row,
                alt_ids=done.alt_ids_RK,
                alt_logprob=alt_logprob,
                alt_answer=done.answer_RK,
                alt_tokens=done.tokens_RK,
                alt_outcome=done.outcome_RK,
                **drawn,
            )
            for row, (_, alt_logprob), done, drawn in zip(rows, wider, evidence, counts, strict=True)
        ]
        return filled, tally, _compute(tally, seconds=time.monotonic() - started)

    def _planned(
        self, kept: Sequence[Solved], alt_ids: Sequence[NDArray[np.int32]], views: Sequence[ResponseView]
    ) -> tuple[list[Evidence], list[NDArray[np.int8]], Tally]:
        """Choose the positions to test. Returns empty evidence per response, the outcomes of continuations of response prefixes
        (if the choice needed any), and the work done."""
        # A given token is not the model's choice, so replaying it would not be a control.
        replays = 0.0 if self.responses in GIVEN else self.replay_fraction
        tally = Tally()

        chosen = choose_positions(
            self.positions,
            views,
            [(s.sequence, s.problem.answer) for s in kept],
            engine=self.engine,
            grader=self.grader,
            budget=self.budget,
            tally=tally,
            on_fork=self.on_fork,
        )
        evidence = [
            fresh_evidence(
                response_id=s.response_id(),
                answer=s.problem.answer,
                sequence=s.sequence,
                alt_ids_RK=ids,
                replay_fraction=replays,
                wanted_R=found.wanted_R,
                expected=wanted(self.responses),
            )
            for s, ids, found in zip(kept, alt_ids, chosen, strict=True)
        ]
        return evidence, [found.prefix_R for found in chosen], tally

    def _view(self, solved: Solved, top: TopTokens) -> ResponseView:
        assert solved.completion is not None
        text, spans = char_spans(self.tokenizer, solved.completion.ids)
        return ResponseView(solved.problem.id, text, spans, top.entropy_R, wanted(self.responses))

    def _sampled(
        self, evidence: Sequence[Evidence], tally: Tally, counts: Sequence[dict[str, Counts]]
    ) -> Sequence[dict[str, Counts]]:
        """Draw the missing samples; returns the columns of counts per row, {} if no samples are configured."""
        if self.samples is None:
            return [{} for _ in evidence]
        draw_samples(
            self.engine,
            evidence,
            counts,
            design=self.samples,
            grader=self.grader,
            budget=self.budget,
            tally=tally,
            on_fork=self.on_fork,
        )
        return counts

    def _run(self, evidence: list[Evidence], tally: Tally) -> Tally:
        return run_counterfactuals(
            self.engine,
            evidence,
            grader=self.grader,
            budget=self.budget,
            short_circuit=self.short_circuit,
            tally=tally,
            on_fork=self.on_fork,
        )

    def _solving(self) -> Solving:
        return Solving(
            self.engine,
            self.tokenizer,
            self.prompt,
            self.grader,
            self.budget,
            self.eos_ids,
            self.max_positions,
            self.responses,
            self._num_ranks,
            self.thinking,
        )

    @property
    def _num_ranks(self) -> int:
        """How many of the most probable tokens of a position are needed to find its K alternatives."""
        return self.num_alternatives + len(self.eos_ids)

    def _ranked(
        self, sequences: Sequence[TokenSequence], *, known: Sequence[TopTokens | None]
    ) -> list[tuple[TopTokens, NDArray[np.int32], NDArray[np.float32]]]:
        """The model's scores of responses, and their alternatives: ids and log-probs [R, K].

        known: scores from the decoding pass, per response; responses without them are scored.
        """
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
        assert top is not None  # every sequence was decoded with ranks, or scored
        ids, logprob = alternatives(
            sequence.ids[sequence.prompt_len :],
            top,
            k=self.num_alternatives,
            eos_ids=self.eos_ids,
            padding_ids=self.padding_ids,
        )
        return top, ids, logprob

    def _widened(self, rows: Sequence[AnnotatedResponse]) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Alternatives of stored rows; a row is scored again only if it needs more of them than are stored."""
        short = [i for i, row in enumerate(rows) if self.num_alternatives > row.alt_ids.shape[1]]
        found = self._ranked([_sequence(rows[i]) for i in short], known=[None] * len(short))
        wider = {i: (row.alt_ids, row.alt_logprob) for i, row in enumerate(rows)}
        for i, (_, ids_RK, logprob_RK) in zip(short, found, strict=True):
            # A second pass of an inexact engine may rank near-equal tokens differently.
            wider[i] = (ids_RK, logprob_RK) if self.engine.exact else _stored_first(rows[i], ids_RK, logprob_RK)
        return [wider[i] for i in range(len(rows))]

    def _row(
        self,
        solved: Solved,
        view: ResponseView,
        top: TopTokens,
        alt_logprob: NDArray[np.float32],
        evidence: Evidence,
        prefix_R: NDArray[np.int8],
    ) -> AnnotatedResponse:
        assert solved.completion is not None
        return AnnotatedResponse(
            problem_id=solved.problem.id,
            response_id=evidence.response_id,
            problem=solved.problem.question,
            answer=solved.problem.answer,
            response=view.text,
            finish=solved.completion.finish,
            prompt_ids=solved.sequence.ids[: solved.sequence.prompt_len],
            response_ids=solved.completion.ids,
            char_span=view.char_span,
            logprob=top.logprob_R,
            entropy=top.entropy_R,
            alt_ids=evidence.alt_ids_RK,
            alt_logprob=alt_logprob,
            alt_answer=evidence.answer_RK,
            alt_tokens=evidence.tokens_RK,
            alt_outcome=evidence.outcome_RK,
            replay_outcome=evidence.replay_R,
            verdict="right" if evidence.expected == Outcome.RIGHT else "wrong",
            prefix_outcome=prefix_R,
        )


def _sequence(row: AnnotatedResponse) -> TokenSequence:
    return TokenSequence(np.concatenate([row.prompt_ids, row.response_ids]), len(row.prompt_ids))


def _counts(solved: Sequence[Solved], tally: Tally) -> dict[str, int]:
    statuses: dict[str, int] = {}
    for s in solved:
        statuses[s.status] = statuses.get(s.status, 0) + 1
    rescored = sum(s.completion.num_ties_rescored for s in solved if s.completion)
    return {"problems": len(solved), **statuses, **tally_counts(tally, ties_in_solving=rescored)}


def tally_counts(tally: Tally, *, ties_in_solving: int = 0) -> dict[str, int]:
    return {
        "forks": tally.forks,
        "replays": tally.replays,
        "replay_flips": tally.replay_flips,
        "num_ties_rescored": tally.num_ties_rescored + ties_in_solving,
        **({"probes": tally.probes} if tally.probes else {}),
        **({"samples": tally.samples} if tally.samples else {}),
    }


def _compute(tally: Tally, *, seconds: float) -> dict[str, float]:
    return {
        "counterfactual_tokens": tally.tokens,
        "speculative_tokens": tally.speculative_tokens,
        **({"probe_tokens": tally.probe_tokens} if tally.probe_tokens else {}),
        **({"sample_tokens": tally.sample_tokens} if tally.sample_tokens else {}),
        "counterfactual_seconds": round(seconds, 3),
    }


def _stored_first(
    row: AnnotatedResponse, ids_RK: NDArray[np.int32], logprob_RK: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """K columns of alternatives: the stored ones first, even if rounding has changed the ranks, then new ones."""
    width = ids_RK.shape[1]
    ids, logprobs = ids_RK.copy(), logprob_RK.copy()
    for t in range(len(ids)):
        new = ~np.isin(ids_RK[t], row.alt_ids[t])
        ids[t] = [*row.alt_ids[t], *ids_RK[t][new]][:width]
        logprobs[t] = [*row.alt_logprob[t], *logprob_RK[t][new]][:width]
    return ids, logprobs
