"""Selects the responses of an annotation to train on.

In this order: by the problem's pass rate, by verdict, without duplicates, and at most n per problem. Omitted responses are
counted.
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
    "outcomes": "the outcomes of each token's alternatives",
    "samples": "the outcomes of samples after each token",
}
MAKE = "cft annotate responses=rollouts num_samples=8"


@dataclass(frozen=True, slots=True)
class PassRates:
    """A range of pass rates, from `lowest` to `highest` inclusive; None = no bound.

    With any bound, problems without a decided response are omitted, since their pass rate is not known.
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
    """Which responses to train on.

    Args:
        verdicts: "wrong" includes cut-off responses, as in a pass rate; "compared" = right and wrong ones, for a loss that
            compares them.
        rates: range of the problems' pass rates.
        per_problem: maximal number per problem, and with "compared" per kind of verdict; -1 = all.
    """

    verdicts: Verdicts | Literal["compared"]
    rates: PassRates
    per_problem: int


def chosen(
    rows: Sequence[AnnotatedResponse], choice: Choice, *, rollouts: bool, place: str
) -> tuple[list[AnnotatedResponse], dict[str, int]]:
    """Select the rows to train on.

    Args:
        rows: rows of the annotation.
        choice: which ones to select.
        rollouts: whether the annotation holds rollouts, i.e., every response regardless of its verdict.
        place: name of the annotation for messages.

    Returns:
        (selected rows, reason -> number of omitted rows).

    Raises:
        StoreError: no rows remain, or pass rates are requested of an annotation that does not have them.
    """
    left_out: Counter[str] = Counter()
    if not rollouts:
        _require_right(rows, choice, place=place)
        if choice.rates:
            raise StoreError(
                f"{place}: data.min_pass_rate and data.max_pass_rate need all responses to a problem, but this annotation has "
                f"only those of one verdict; expected rollouts, made with: {MAKE} (and model=..., data=... as there)"
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
        reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in left_out.items() if count)
        raise StoreError(
            f"{place}: none of its {len(rows)} responses remains to train on ({reasons}); expected another data.responses="
            f"{choice.verdicts}, wider data.min_pass_rate and data.max_pass_rate, or more rollouts"
        )
    return kept, {reason: count for reason, count in left_out.items() if count}


def require_no_counterfactuals(place: str, sources: Mapping[str, Any]) -> None:
    """Raises MaskError naming a part that needs evidence which rollouts do not have. sources: parts by config key."""
    for key, source in sources.items():
        for reads in sorted(_COUNTERFACTUAL.keys() & {*getattr(source, "evidence", ())}):
            name = type(getattr(source, "grouping", source)).__name__
            samples = " evidence=sampled" if reads == "samples" else ""
            raise MaskError(
                f"{key}: {name} reads {_COUNTERFACTUAL[reads]}, but {place} holds rollouts, for which no alternatives were "
                "tried; train on them with mask=all, or annotate the model's greedy responses under another name: cft annotate "
                f"annotation=<name> responses=solve{samples} (and model=..., data=... as there)"
            )


def _require_right(rows: Sequence[AnnotatedResponse], choice: Choice, *, place: str) -> None:
    """Raises StoreError if an annotation of one verdict does not have the requested one."""
    wrong = sum(row.verdict == "wrong" for row in rows)
    if wrong and choice.verdicts == "right":
        raise StoreError(
            f"{place}: {wrong} of its {len(rows)} responses end wrong (cft annotate responses=wrong or given_wrong), "
            "and training on them would imitate their mistakes; expected an annotation of right responses. To train on them "
            "anyway: data.responses=wrong"
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
    # Right responses that continue after the answer until they are cut off are omitted: they do not teach where to end.
    ended = [row for row in found if row.finish == "stop" or row.verdict not in ENDED]
    if verdicts != "wrong":
        left_out["right_responses_without_an_end"] = len(found) - len(ended)
    return ended


def _distinct(rows: Sequence[AnnotatedResponse], left_out: Counter[str]) -> list[AnnotatedResponse]:
    """The rows without duplicates: the first of equal responses to a problem is kept."""
    found = {(row.problem_id, row.response_ids.tobytes()): row for row in reversed(rows)}
    kept = list(found.values())[::-1]
    left_out["repeated_responses"] = len(rows) - len(kept)
    return kept


def _first(rows: Sequence[AnnotatedResponse], number: int, *, by_kind: bool) -> list[AnnotatedResponse]:
    """At most `number` responses per problem, by a hash of their ids, so the same for every arm and seed.

    by_kind: select separately among right and wrong responses, so that no group loses one of its sides.
    """
    by_problem: dict[tuple[str, bool], list[AnnotatedResponse]] = {}
    for row in rows:
        by_problem.setdefault((row.problem_id, by_kind and row.verdict in ENDED), []).append(row)
    kept = {
        row.response_id
        for found in by_problem.values()
        for row in sorted(found, key=lambda row: hash_of("response", row.response_id))[:number]
    }
    return [row for row in rows if row.response_id in kept]
