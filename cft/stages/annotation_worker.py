"""The worker that annotates units one by one, and its progress reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cft.annotation.annotator import Annotator, Unit, tally_counts
from cft.annotation.responses import wanted
from cft.annotation.rolling_out import RollingOut
from cft.annotation.rollouts import ROLLOUTS, RolloutDesign
from cft.annotation.sampled import SampleDesign
from cft.config.build import build
from cft.config.schema import AnnotateConfig
from cft.fleets.base import Facts, Report, package_facts
from cft.models.lazy import LazyModel
from cft.models.load import load_tokenizer
from cft.positions import Positions
from cft.prompts.chat import prompting
from cft.quiet import quiet_libraries
from cft.types import AnnotatedResponse, Budget, Completion, Engine, Outcome, Problem, Verifier
from cft.verifiers import verifier_fingerprint
from cft.verifiers.grader import Grader
from cft.verifiers.pool import VerifierPool

ENGINE_COUNTS = ("back_offs", "lost_tokens", "num_given_up")  # counters that an engine may have
FORKS_PER_POSITION = 1.5  # with two alternatives and short-circuit


@dataclass(frozen=True, slots=True)
class UnitProgress:
    """Progress of a unit.

    Args:
        problems: problems done; partially done ones count as fractions.
        solved: responses decoded.
        annotated: responses to annotate.
        forks: continuations decoded.
        tokens: tokens decoded.
        expected_tokens: expected tokens of its counterfactual continuations.
        expected_forks: expected number of its counterfactual continuations.
        mean_tokens: mean length of the responses to annotate.
    """

    problems: float = 0.0
    solved: int = 0
    annotated: int = 0
    forks: int = 0
    tokens: int = 0
    expected_tokens: float = float("nan")
    expected_forks: float = float("nan")
    mean_tokens: float = float("nan")

    def __add__(self, more: UnitProgress) -> UnitProgress:
        """The sum, without expected numbers."""
        return UnitProgress(
            self.problems + more.problems,
            self.solved + more.solved,
            self.annotated + more.annotated,
            self.forks + more.forks,
            self.tokens + more.tokens,
        )


@dataclass(frozen=True, slots=True)
class Problems:
    """A unit to annotate."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class StoredRows:
    """A committed unit whose untried alternatives are to be tried."""

    rows: tuple[AnnotatedResponse, ...]


@dataclass(frozen=True, slots=True)
class Filled:
    """Rows of a committed unit with more alternatives tried. counts, compute: additions to those of the unit."""

    rows: list[AnnotatedResponse]
    counts: dict[str, int]
    compute: dict[str, float]


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a unit. counts: the engine's counters over the unit, by name (`ENGINE_COUNTS`)."""

    result: Unit | Filled
    counts: Counter[str]


@dataclass(frozen=True, slots=True)
class MakeAnnotating:
    """Makes the worker of a config; it is sent to the worker's process.

    Args:
        cfg: Config of the stage.
        verifier: The verifier that grades continuations.
        positions: Selects the positions of a response to try.
        every_outcome: Whether all alternatives are tried.
    """

    cfg: AnnotateConfig
    verifier: Verifier
    positions: Positions
    every_outcome: bool

    @classmethod
    def of(
        cls, cfg: AnnotateConfig, *, verifier: Verifier, positions: Positions, every_outcome: bool
    ) -> MakeAnnotating:
        """Make it without the parts that workers do not use: loggers and data."""
        sent = replace(cfg, logger={}, data=None)  # pyright: ignore[reportArgumentType]
        return cls(sent, verifier, positions, every_outcome)

    def __call__(self, device: str) -> Annotating:
        return Annotating(
            self.cfg, self.verifier, positions=self.positions, every_outcome=self.every_outcome, device=device
        )


class Annotating:
    """Model, engine, verifiers and annotator for the units of one annotation."""

    def __init__(
        self, cfg: AnnotateConfig, verifier: Verifier, *, positions: Positions, every_outcome: bool, device: str
    ) -> None:
        quiet_libraries()
        spec, prompt, make_engine = build(cfg.model), build(cfg.prompt), build(cfg.engine)
        tokenizer = load_tokenizer(spec)
        asked = prompting(prompt, tokenizer)
        model = LazyModel(
            spec,
            tokenizer,
            ends=[prompt.end_id(tokenizer)],
            device=device,
            shard=cfg.shard,
            num_shards=cfg.num_shards,
        )
        weights = model.weights() if make_engine.hashes_weights else ""
        with ExitStack() as held:
            engine: Engine = held.enter_context(closing(make_engine(model)))
            pool = held.enter_context(
                VerifierPool(verifier, workers=cfg.verify.workers, timeout_s=cfg.verify.timeout_s)
            )
            self._held = held.pop_all()
        self.engine = engine
        grader = Grader.of(verifier, tokenizer=tokenizer, prompt=prompt, verify_all=pool.verify_all)
        budget, context, design = Budget(cfg.max_new_tokens), model.facts.context, rollout_design(cfg)
        self.rolling_out = RollingOut(engine, tokenizer, prompt, grader, budget, context, design) if design else None
        self.annotator = Annotator(
            engine=engine,
            tokenizer=tokenizer,
            prompt=prompt,
            grader=grader,
            budget=budget,
            eos_ids=model.facts.eos_ids,
            max_positions=context,
            num_alternatives=cfg.num_alternatives,
            short_circuit=not every_outcome,
            replay_fraction=cfg.replay_fraction,
            responses=cfg.responses,
            positions=positions,
            every_position=cfg.complete,
            samples=sample_design(cfg),
            thinking=cfg.verify.thinking.tags,
            padding_ids=model.facts.unnamed_ids,
        )
        self.facts: Facts = {
            **asked,
            "weights": weights,
            "eos_ids": list(model.facts.eos_ids),
            "verifier": verifier_fingerprint(verifier),
            "numerics": {key: value for key, value in numerics(engine).items() if key != "probe"},
            "probe": engine.facts().get("probe"),
            "packages": package_facts(),
        }

    def work(self, item: Problems | StoredRows, report: Report) -> Done:
        before = self._counts()
        if isinstance(item, Problems) and self.rolling_out:
            _count_responses(self.rolling_out, len(item.problems), report)
            found: Unit | Filled = self.rolling_out.fresh(item.problems)
        elif isinstance(item, Problems):
            _Meter(self.annotator, len(item.problems), report)
            found = self.annotator.fresh(item.problems)
        else:
            rows, tally, compute = self.annotator.filled(item.rows)
            found = Filled(rows, tally_counts(tally), compute)
        return Done(found, self._counts() - before)

    def close(self) -> None:
        self._held.close()

    def _counts(self) -> Counter[str]:
        return Counter({name: getattr(self.engine, name, 0) for name in ENGINE_COUNTS})


class _Meter:
    """Turns the annotator's events for one unit into progress reports."""

    def __init__(self, annotator: Annotator, problems: int, report: Report) -> None:
        self.progress, self.problems, self.report = UnitProgress(), problems, report
        few = annotator.short_circuit and wanted(annotator.responses) == Outcome.RIGHT
        share = FORKS_PER_POSITION / 2 if few else 1.0  # another token rarely turns a wrong response right
        # Per position: greedy continuations, and samples of each alternative and of the original token.
        drawn = annotator.samples.num_samples if annotator.samples else 0
        self.per_position = share * annotator.num_alternatives + drawn * (annotator.num_alternatives + 1)
        self.forks = 1.0  # expected
        annotator.on_solved, annotator.on_plan, annotator.on_fork = self.on_solved, self.on_plan, self.on_fork

    def on_solved(self, completion: Completion) -> None:
        self._advance(0.1, completion, solved=self.progress.solved + 1)

    def on_plan(self, tries: Sequence[NDArray[np.bool_]]) -> None:
        """tries: [R] for each response, the positions to try."""
        forks = self.per_position * float(sum(tries_R.sum() for tries_R in tries))
        self.forks = max(1.0, forks)
        self.progress = replace(
            self.progress,
            annotated=len(tries),
            expected_tokens=self.per_position * sum(tokens_after(tries_R) for tries_R in tries),
            expected_forks=forks,
            mean_tokens=float(np.mean([len(tries_R) for tries_R in tries])) if tries else 0.0,
        )
        self.report(self.progress)

    def on_fork(self, completion: Completion) -> None:
        self._advance(0.9 * self.problems / self.forks, completion, forks=self.progress.forks + 1)

    def _advance(self, problems: float, completion: Completion, **counts: int) -> None:
        self.progress = replace(
            self.progress,
            problems=min(self.progress.problems + problems, self.problems),
            tokens=self.progress.tokens + completion.num_decoded,
            **counts,
        )
        self.report(self.progress)


def _count_responses(rolling_out: RollingOut, problems: int, report: Report) -> None:
    """Report progress for each finished response of a unit of rollouts."""
    progress, expected = UnitProgress(), problems * len(rolling_out.design.samples())

    def on_done(completion: Completion) -> None:
        nonlocal progress
        progress = replace(
            progress,
            solved=progress.solved + 1,
            problems=problems * (progress.solved + 1) / expected,
            tokens=progress.tokens + completion.num_decoded,
        )
        report(progress)

    rolling_out.on_done = on_done


def rollout_design(cfg: AnnotateConfig) -> RolloutDesign | None:
    """The rollout settings, or None if responses are annotated."""
    if cfg.responses != ROLLOUTS:
        return None
    return RolloutDesign(cfg.num_samples, cfg.temperature, cfg.top_p, cfg.seed)


def sample_design(cfg: AnnotateConfig) -> SampleDesign | None:
    """The sampling settings, or None if continuations are greedy only."""
    if cfg.evidence == "greedy":
        return None
    return SampleDesign(cfg.num_samples, cfg.temperature, cfg.top_p, cfg.seed)


def tokens_after(tries_R: NDArray[Any]) -> float:
    """Expected tokens decoded with one alternative at each of these positions: a continuation at t has about R - t tokens."""
    return float((tries_R * np.arange(len(tries_R), 0, -1)).sum())


def numerics(engine: Engine) -> dict[str, Any]:
    """Facts that may change a near tie and therefore an outcome, for the fingerprint. Exact engines are interchangeable."""
    return engine.facts() if engine.exact else {**engine.facts(), "exact": False}
