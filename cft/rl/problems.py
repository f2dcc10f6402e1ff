"""Selects the problems of cft rl: without test problems, and without prompts that leave too little room in the context."""

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
    """The selected problems.

    problems: in order. prompts: prompt token ids by problem id. left_out: reason -> number of problems left out.
    """

    problems: tuple[Problem, ...]
    prompts: dict[str, list[int]]
    left_out: dict[str, int]

    def problem(self, name: str) -> Problem:
        return next(problem for problem in self.problems if problem.id == name)

    def fingerprint(self) -> str:
        return sha256_json([[p.id, p.question, p.answer] for p in self.problems])


@dataclass(frozen=True, slots=True)
class KnownRates:
    """Known pass rates, and the range of pass rates to train on.

    by_problem: pass rate by problem id, NaN if all of a problem's rollouts are undecided. bounds: the wanted range.
    """

    by_problem: Mapping[str, float]
    bounds: PassRates

    @classmethod
    def of(cls, store: AnnotationStore, bounds: PassRates) -> KnownRates:
        """Read the pass rates of an annotation. Raises ConfigError if it holds no rollouts."""
        if not holds_rollouts(store.manifest()):
            raise ConfigError(
                f"pass_rates.annotation: {store.folder} holds only responses of one verdict; expected rollouts, created with: "
                "cft annotate responses=rollouts num_samples=8 (and model=..., data=... as here)"
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
    """Select the training problems and tokenize their prompts.

    Args:
        data: Problems by split; the train split is used.
        limit: Maximum number of problems, -1 = all.
        held_out: Normalized questions of the benchmark, which are left out.
        prompt: Renders a question.
        tokenizer: Tokenizer of the policy.
        context: Maximum length of a sequence, tokens.
        max_new_tokens: Maximum length of a response, tokens.
        at_least: Minimum number of problems: those of one step.
        rates: Pass rates to select by; None = problems of any pass rate.

    Raises:
        ConfigError: Fewer than `at_least` problems are left.
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
            "enough for one step. Lower it, raise limit, or choose other data"
        )
    return Asked(tuple(fit), {problem.id: prompts[problem.id] for problem in fit}, left_out)


def rows_of(problems: Sequence[Problem]) -> dict[str, list[str]]:
    """Columns of TRL's data set. `prompt` holds the problem id, which the trainer maps to token ids (`cft/rl/trainer.py`)."""
    return {"prompt": [problem.id for problem in problems], "answer": [problem.answer for problem in problems]}
