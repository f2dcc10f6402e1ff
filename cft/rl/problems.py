"""The problems that are responded to: none that is tested on, and none whose prompt leaves too little room."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cft.annotation.rollouts import holds_rollouts
from cft.annotation.store import AnnotationStore
from cft.config.build import ConfigError
from cft.data.chosen import PassRates
from cft.data.problem_rows import normalized
from cft.data.splits import Splits
from cft.files import sha256_json
from cft.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cft.prompts.chat import Prompt


@dataclass(frozen=True, slots=True)
class Asked:
    """Problems with the ids of their prompts, by problem id; and how many were left out, and why."""

    problems: tuple[Problem, ...]
    prompts: dict[str, list[int]]
    left_out: dict[str, int]

    def problem(self, name: str) -> Problem:
        return next(problem for problem in self.problems if problem.id == name)

    def fingerprint(self) -> str:
        return sha256_json([[p.id, p.question, p.answer] for p in self.problems])


@dataclass(frozen=True, slots=True)
class KnownRates:
    """by_problem: pass rates by id, NaN where none of a problem's rollouts is decided. bounds: of those that are wanted."""

    by_problem: Mapping[str, float]
    bounds: PassRates

    @classmethod
    def of(cls, store: AnnotationStore, bounds: PassRates) -> KnownRates:
        """Raises ConfigError where the annotation holds no rollouts."""
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
) -> Asked:
    """limit: of problems, -1 = all. held_out: normalized questions of the benchmark. at_least: problems of one step. rates:
    None = problems of any pass rate.

    Raises:
        ConfigError: too few are left.
    """
    problems = data.of("train")
    free = [problem for problem in problems if normalized(problem.question) not in held_out]
    wanted = [problem for problem in free if rates is None or rates.hold(problem.id)]
    chosen = wanted[: limit if limit >= 0 else None]
    prompts = {problem.id: [int(i) for i in prompt.ids(tokenizer, problem.question)] for problem in chosen}
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
            f"rollout.problems_per_step={at_least}: data {data.name} gives {len(fit)} problems{reasons}; expected at least "
            "those of one step. Lower it, raise limit, or choose other data"
        )
    return Asked(tuple(fit), {problem.id: prompts[problem.id] for problem in fit}, left_out)


def rows_of(problems: Sequence[Problem]) -> dict[str, list[str]]:
    """The columns of TRL's data set. A prompt is named by its problem: its ids are ours (`cft/rl/trainer.py`)."""
    return {"prompt": [problem.id for problem in problems], "answer": [problem.answer for problem in problems]}
