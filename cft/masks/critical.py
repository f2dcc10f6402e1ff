"""The critical mask: a rule over the stored outcomes of each token's alternatives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from cft.masks.base import RowMask, TooLittleEvidence, Weights
from cft.ranges import AtLeastOne, in_range
from cft.types import AnnotatedResponse, Outcome


class Critical(RowMask):
    """Tokens whose every alternative ends wrong (CFT, arXiv 2510.10974, section 3).

    Args:
        num_alternatives: how many of the stored alternatives count, in order of rank; at least 1. The paper's default is 2.
        rule: "all" alternatives must end wrong (the paper), or "any" one of them, or "fraction": the weight is the fraction of
            them that end wrong, so tokens whose every alternative ends right are not eligible. "any" and "fraction" need an
            annotation in which every alternative was tried.
        cut_off: whether a continuation that met the token limit without an explicit answer counts as "wrong" (the paper) or
            "not_wrong". Undecided verdicts never count as wrong.

    Raises:
        TooLittleEvidence: the annotation holds fewer alternatives, or left some untried that decide.
    """

    evidence = ("outcomes",)

    @in_range
    def __init__(
        self,
        *,
        num_alternatives: AtLeastOne = 2,
        rule: Literal["all", "any", "fraction"] = "all",
        cut_off: Literal["wrong", "not_wrong"] = "wrong",
    ) -> None:
        self.num_alternatives = num_alternatives
        self.rule = rule
        self.cut_off = cut_off

    def __call__(self, row: AnnotatedResponse) -> Weights:
        k = self.num_alternatives
        afresh = f"num_alternatives={k}{'' if self.rule == 'all' else ' short_circuit=false'}"
        stored = row.alt_outcome.shape[1]
        if stored < k:
            raise TooLittleEvidence(
                f"response {row.response_id}: mask.num_alternatives={k}, but the annotation holds {stored}",
                remedy=f"extend it with: cft annotate annotation=<name> num_alternatives={k} (and its other "
                "arguments as before)",
                afresh=afresh,
            )
        outcome_RK = row.alt_outcome[:, :k]
        fails_RK = outcome_RK == Outcome.WRONG
        if self.cut_off == "wrong":
            fails_RK |= outcome_RK == Outcome.CUT_OFF
        untried_RK = outcome_RK == Outcome.UNTRIED
        if self.rule == "any":
            open_R = untried_RK.any(1) & ~fails_RK.any(1)
            verdict_R = fails_RK.any(1)
        elif self.rule == "fraction":
            open_R = untried_RK.any(1)
            verdict_R = fails_RK.mean(1)
        else:
            open_R = untried_RK.any(1) & (fails_RK | untried_RK).all(1)
            verdict_R = fails_RK.all(1)
        if open_R.any():
            raise TooLittleEvidence(
                f"response {row.response_id}: {int(open_R.sum())} positions are undecided under mask.rule={self.rule}, "
                "since annotation stopped at the first right alternative",
                remedy="fill the gaps with: cft annotate annotation=<name> complete=true (and its other arguments "
                "as before)",
                afresh=afresh,
            )
        return verdict_R.astype(np.float32)


def critical_fraction(rows: Iterable[AnnotatedResponse], *, num_alternatives: int) -> float:
    """Fraction of response tokens that are critical under the paper's rule, 0-1; NaN without rows."""
    mask = Critical(num_alternatives=num_alternatives)
    masks = [mask(row) for row in rows]
    return float(np.concatenate(masks).mean()) if masks else float("nan")
