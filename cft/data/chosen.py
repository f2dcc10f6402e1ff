"""Which responses of an annotation are trained on: by verdict, by their problem's pass rate, so many of a problem.

In this order: problems by pass rate, responses by verdict, one of several equal ones, the first few of each problem. What is
left out is counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cft.annotation.rollouts import pass_rates
from cft.annotation.store import StoreError
from cft.masks.base import MaskError, hash_of
from cft.types import AnnotatedResponse

Verdicts = Literal["right", "wrong", "all"]
ENDED, FAILED = ("right",), ("wrong", "cut off")
_COUNTERFACTUAL = {
    "outcomes": "what came of each token's alternatives",
    "samples": "what came of samples after each token",
}
MAKE = "cft annotate responses=rollouts num_samples=8"


@dataclass(frozen=True, slots=True)
class PassRates:
    """Problems whose pass rate is from `lowest` to `highest`, both included. None: no bound.

    With any bound a problem of which no response is decided is left out, since its rate is not known.
    """

    lowest: float | None = None
    highest: float | None = None

    def __bool__(self) -> bool:
        return self.lowest is not None or self.highest is not None

    def hold(self, rate: float) -> bool:
        if not self:
            return True
        lowest, highest = (0.0 if self.lowest is None else self.lowest), (1.0 if self.highest is None else self.highest)
        return not math.isnan(rate) and lowest <= rate <= highest

    def __str__(self) -> str:
        return (
            f"from {self.lowest if self.lowest is not None else 0} to {self.highest if self.highest is not None else 1}"
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """verdicts: "wrong" are those that count so in a pass rate, cut off ones too; "compared" these and the right ones, for a
    loss that compares them. per_problem: -1 = all; "compared": of each kind."""

    verdicts: Verdicts | Literal["compared"]
    rates: PassRates
    per_problem: int


def chosen(
    rows: Sequence[AnnotatedResponse], choice: Choice, *, rollouts: bool, place: str
) -> tuple[list[AnnotatedResponse], dict[str, int]]:
    """(the rows that are trained on, reason -> how many were left out). rollouts: whether every response was kept.

    Raises:
        StoreError: Nothing is left, or pass rates are asked for that the annotation does not hold.
    """
    left_out: Counter[str] = Counter()
    if not rollouts:
        _require_right(rows, choice, place=place)
        if choice.rates:
            raise StoreError(
                f"{place}: data.min_pass_rate and data.max_pass_rate need every response to a problem, and this annotation "
                f"holds those of one verdict; expected rollouts, made with: {MAKE} (and model=..., data=... as there)"
            )
    kept = list(rows)
    if choice.rates:
        rates = pass_rates(rows)
        inside = {problem for problem, rate in rates.items() if choice.rates.hold(rate)}
        left_out["problems_outside_pass_rates"] = len(rates) - len(inside)
        kept = [row for row in kept if row.problem_id in inside]
    if rollouts:
        kept = _of_verdict(kept, choice.verdicts, left_out)
        kept = _distinct(kept, left_out)
    if choice.per_problem >= 0:
        before = len(kept)
        kept = _first(kept, choice.per_problem, by_kind=choice.verdicts == "compared")
        left_out["responses_beyond_those_of_a_problem"] = before - len(kept)
    if rows and not kept:
        told = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in left_out.items() if count)
        raise StoreError(
            f"{place}: none of its {len(rows)} responses is left to train on ({told}); expected another data.responses="
            f"{choice.verdicts}, wider data.min_pass_rate and data.max_pass_rate, or more rollouts"
        )
    return kept, {reason: count for reason, count in left_out.items() if count}


def require_no_counterfactuals(place: str, sources: Mapping[str, Any]) -> None:
    """Raises MaskError naming what reads the evidence that rollouts have none of. sources: by key of the configuration."""
    for key, source in sources.items():
        for reads in sorted(_COUNTERFACTUAL.keys() & {*getattr(source, "evidence", ())}):
            name = type(getattr(source, "grouping", source)).__name__
            samples = " evidence=sampled" if reads == "samples" else ""
            raise MaskError(
                f"{key}: {name} reads {_COUNTERFACTUAL[reads]}, and {place} holds rollouts, of which nothing else was tried; "
                "train on them with mask=all, or annotate the model's greedy responses under another name: cft annotate "
                f"annotation=<name> responses=solve{samples} (and model=..., data=... as there)"
            )


def _require_right(rows: Sequence[AnnotatedResponse], choice: Choice, *, place: str) -> None:
    """Of an annotation of one verdict: that it is the one asked for."""
    wrong = sum(row.verdict == "wrong" for row in rows)
    if wrong and choice.verdicts == "right":
        raise StoreError(
            f"{place}: {wrong} of its {len(rows)} responses end wrong (cft annotate responses=wrong or given_wrong), "
            "and training on them would imitate their mistakes; expected an annotation of right responses. To do it all "
            "the same: data.responses=wrong"
        )
    if wrong < len(rows) and choice.verdicts == "wrong":
        raise StoreError(
            f"{place}: data.responses=wrong, but {len(rows) - wrong} of its {len(rows)} responses end right; expected "
            f"data.responses=right, or an annotation with wrong ones: {MAKE}, or cft annotate responses=wrong"
        )


def _of_verdict(
    rows: Sequence[AnnotatedResponse], verdicts: Verdicts | Literal["compared"], left_out: Counter[str]
) -> list[AnnotatedResponse]:
    if verdicts == "all":
        return list(rows)
    wanted = {"right": ENDED, "wrong": FAILED, "compared": (*ENDED, *FAILED)}[verdicts]
    found = [row for row in rows if row.verdict in wanted]
    left_out["responses_undecided" if verdicts == "compared" else f"responses_not_{verdicts}"] = len(rows) - len(found)
    # Of the right ones nothing that went on after its answer until it was cut off: no end would be learnt.
    ended = [row for row in found if row.finish == "stop" or row.verdict not in ENDED]
    if verdicts != "wrong":
        left_out["right_responses_without_an_end"] = len(found) - len(ended)
    return ended


def _distinct(rows: Sequence[AnnotatedResponse], left_out: Counter[str]) -> list[AnnotatedResponse]:
    """The first of several equal responses to a problem."""
    found = {(row.problem_id, row.response_ids.tobytes()): row for row in reversed(rows)}
    kept = list(found.values())[::-1]
    left_out["repeated_responses"] = len(rows) - len(kept)
    return kept


def _first(rows: Sequence[AnnotatedResponse], number: int, *, by_kind: bool) -> list[AnnotatedResponse]:
    """At most `number` of each problem, by a hash of their ids: the same for every arm and seed. by_kind: of its right ones and
    of the others, so that no group loses a side."""
    by_problem: dict[tuple[str, bool], list[AnnotatedResponse]] = {}
    for row in rows:
        by_problem.setdefault((row.problem_id, by_kind and row.verdict in ENDED), []).append(row)
    kept = {
        row.response_id
        for found in by_problem.values()
        for row in sorted(found, key=lambda row: hash_of("response", row.response_id))[:number]
    }
    return [row for row in rows if row.response_id in kept]
