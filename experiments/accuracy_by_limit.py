"""Greedy accuracy as a function of max_new_tokens up to the end of the context; checks that the curve never falls.

    python -m experiments.accuracy_by_limit

A longer limit lets a greedy response finish that a shorter one cut off, and does not change responses that had finished. So on
the same problems, accuracy cannot fall as the limit rises, even if prompt + limit exceeds the context. Exit status 1 if it
falls.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from cft.console import console
from cft.data.sources import arithmetic
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.evaluation.evaluation import SampleRequest, Solver, verdict_counts
from cft.evaluation.room import room_for
from cft.models.load import ModelSpec, eos_ids, load_causal_lm, load_tokenizer
from cft.prompts.chat import Chat
from cft.types import Problem
from cft.verifiers import Numeric
from cft.verifiers.grader import Grader


@dataclass(frozen=True, slots=True)
class Point:
    """Results at one limit. short: problems with less context left than the limit. not_run: problems with none left."""

    limit: int
    run: int
    right: int
    cut_off: int
    short: int
    not_run: int


def points(solver: Solver, problems: Sequence[Problem], *, limits: Sequence[int]) -> list[Point]:
    found = []
    for limit in limits:
        room = room_for(
            problems,
            prompt_len=lambda problem: len(solver.prompt.ids(solver.tokenizer, problem.question)),
            context=solver.max_positions,
            max_new_tokens=limit,
        )
        counts = verdict_counts(solver.solve(room.run, request=SampleRequest(0, 0.0, 1.0, 0, limit), title=""))
        found.append(
            Point(limit, len(room.run), counts["right"], counts["cut off"], len(room.short), len(room.not_run))
        )
    return found


def falls(curve: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Neighboring points at which the longer limit has the lower accuracy."""
    return [(a, b) for a, b in itertools.pairwise(curve) if b.right * a.run < a.right * b.run]


def tiny_arith_solver(*, context: int | None = None) -> Solver:
    """context: context length in tokens, at most the model's own; None = the model's own."""
    spec = ModelSpec(name="tiny_arith", path="package:tiny_arith")
    tokenizer, model = load_tokenizer(spec), load_causal_lm(spec)
    verifier = Numeric(fallback_last_number=True)
    grader = Grader(tokenizer, lambda items: [verifier(text, answer) for text, answer in items])
    engine = SharedPrefixEngine(model, eos_ids(model, tokenizer))
    whole = model.config.max_position_embeddings
    return Solver(engine, tokenizer, Chat(system="", template="{question}"), grader, min(context or whole, whole))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--limits", type=int, nargs="+", help="default: 60, 80, ... to the end of the context")
    arguments = parser.parse_args()
    solver = tiny_arith_solver()
    problems = arithmetic(name="arithmetic", seed=0, num_train=4000, num_validation=400, num_test=1000).of("test")[
        : arguments.problems
    ]
    limits = arguments.limits or [*range(60, solver.max_positions, 20), solver.max_positions]
    curve = points(solver, problems, limits=limits)
    table = Table(
        title=f"tiny_arith, {len(problems)} problems, context {solver.max_positions} tokens", title_justify="left"
    )
    for name in ("max_new_tokens", "run", "short of room", "not run", "cut off", "accuracy"):
        table.add_column(name, justify="right")
    for p in curve:
        table.add_row(*map(str, (p.limit, p.run, p.short, p.not_run, p.cut_off)), f"{p.right / p.run:.3f}")
    console.print(table)
    if found := falls(curve):
        raise SystemExit("\n".join(f"accuracy falls from max_new_tokens={a.limit} to {b.limit}" for a, b in found))


if __name__ == "__main__":
    main()
