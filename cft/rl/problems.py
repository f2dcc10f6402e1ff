"""Selects the problems for rollouts: without held-out test problems, and without prompts that leave too little context."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cft.annotation.rollouts import holds_rollouts
from cft.annotation.store import AnnotationStore
from cft.config.build import ConfigError
from cft.data.chosen import PassRates
from cft.data.problem_rows import normalized
from cft.data.splits import Splits
from cft.files import sha256_json
from cft.rl.levels import NO_LEVEL, Level, Levels, level_of
from cft.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cft.prompts.chat import Prompt


@dataclass(frozen=True, slots=True)
class Asked:
    """The selected problems, prompt ids and level of length by problem id, and the number of problems left out, by reason."""

    problems: tuple[Problem, ...]
    prompts: dict[str, list[int]]
    levels: dict[str, Level]
    left_out: dict[str, int]

    def problem(self, name: str) -> Problem:
        return next(problem for problem in self.problems if problem.id == name)

    def fingerprint(self) -> str:
        return sha256_json([[p.id, p.question, p.answer] for p in self.problems])


@dataclass(frozen=True, slots=True)
class KnownRates:
    """Pass rates from an annotation, and the range to select.

    by_problem: pass rates by problem id, NaN if none of a problem's rollouts is decided. bounds: the range.
    """

    by_problem: Mapping[str, float]
    bounds: PassRates

    @classmethod
    def of(cls, store: AnnotationStore, bounds: PassRates) -> KnownRates:
        """Raises ConfigError if the annotation holds no rollouts."""
        if not holds_rollouts(store.manifest()):
            raise ConfigError(
                f"pass_rates.annotation: {store.folder} holds responses of one verdict; expected rollouts, made with: cft "
                "annotate responses=rollouts num_samples=8 (and model=..., data=... as here)"
            )
        return cls({record.problem_id: record.pass_rate for record in store.problems()}, bounds)

    def hold(self, problem_id: str) -> bool:
        return problem_id in self.by_problem and self.bounds.hold(self.by_problem[problem_id])


def asked(
    data: Splits,
    *,
    limit: int,
    held_out: Collection[str],
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    max_new_tokens: int,
    at_least: int,
    rates: KnownRates | None = None,
    levels: Levels | None = None,
) -> Asked:
    """Select the problems and encode their prompts.

    Args:
        data: The data; its split "train" is used.
        limit: Maximum number of problems, -1 = all.
        held_out: Normalized questions of the benchmark.
        prompt: The prompt format.
        tokenizer: The model's tokenizer.
        context: The model's context length in tokens.
        max_new_tokens: Token limit of a response.
        at_least: Number of problems per step.
        rates: Pass rates to select by; None = problems of any pass rate.
        levels: Levels of length, of which each problem gets one; None = none.

    Raises:
        ConfigError: Fewer than `at_least` problems remain.
    """
    problems = data.of("train")
    free = [problem for problem in problems if normalized(problem.question) not in held_out]
    wanted = [problem for problem in free if rates is None or rates.hold(problem.id)]
    chosen = wanted[: limit if limit >= 0 else None]
    given = {problem.id: levels[level_of(problem, levels)] if levels else NO_LEVEL for problem in chosen}
    prompts = {p.id: [int(i) for i in prompt.ids(tokenizer, p.question + given[p.id].prompt)] for p in chosen}
    fit = [problem for problem in chosen if len(prompts[problem.id]) + max_new_tokens <= context]
    left_out = {
        "held out for the tests": len(problems) - len(free),
        f"without a pass rate {rates.bounds if rates else ''}": len(free) - len(wanted),
        f"no room for {max_new_tokens} tokens in the context of {context}": len(chosen) - len(fit),
    }
    left_out = {reason: count for reason, count in left_out.items() if count}
    if len(fit) < at_least:
        reasons = "".join(f", {count} left out ({reason})" for reason, count in left_out.items())
        raise ConfigError(
            f"rollout.problems_per_step={at_least}: data {data.name} gives {len(fit)} problems{reasons}; expected enough for "
            "one step. Lower it, raise limit, or choose other data"
        )
    kept = {problem.id: given[problem.id] for problem in fit}
    return Asked(tuple(fit), {name: prompts[name] for name in kept}, kept, left_out)


def rows_of(found: Asked) -> dict[str, list[Any]]:
    """The columns of TRL's data set. The prompt is the problem id, from which `cft/rl/trainer.py` looks up the token ids; the
    other columns are arguments of the reward function."""
    return {
        "prompt": [problem.id for problem in found.problems],
        "answer": [problem.answer for problem in found.problems],
        "penalty_scale": [found.levels[problem.id].penalty_scale for problem in found.problems],
    }
