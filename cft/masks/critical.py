"""The critical mask and its counterpart for wrong responses: rules over the stored outcomes of each token's alternatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cft.masks.base import MaskError, RowMask, TooLittleEvidence, Weights
from cft.ranges import AtLeastOne, in_range
from cft.types import AnnotatedResponse, Outcome

Rule = Literal["all", "any", "fraction"]
Untried = Literal["refuse", "leave_out"]


class OutcomeRule(RowMask, ABC):
    """Base of the masks of this module: a rule over the outcomes of the first K alternatives of each position.

    A position without any tried alternative (`cft annotate positions=...`) is never skipped silently: it is refused, or, with
    `untried` set, left out as a token without evidence.
    """

    evidence = ("outcomes",)
    verdict: Literal["right", "wrong"]  # of the responses that it applies to

    def __init__(self, *, num_alternatives: int, rule: Rule, untried: Untried) -> None:
        self.num_alternatives = num_alternatives
        self.rule = rule
        self.untried = untried

    @abstractmethod
    def counts_RK(self, outcome_RK: NDArray[np.int8]) -> NDArray[np.bool_]:
        """[R, K] alternatives with the outcome that the rule counts."""

    def known(self, row: AnnotatedResponse) -> NDArray[np.bool_]:
        return (row.alt_outcome[:, : self.num_alternatives] != Outcome.UNTRIED).any(1)

    def __call__(self, row: AnnotatedResponse) -> Weights:
        self._require_evidence(row)
        outcome_RK = row.alt_outcome[:, : self.num_alternatives]
        counts_RK = self.counts_RK(outcome_RK)
        untried_RK = outcome_RK == Outcome.UNTRIED
        tried_R = ~untried_RK.all(1)
        if self.untried == "refuse" and not tried_R.all():
            raise TooLittleEvidence(
                f"response {row.response_id}: {int((~tried_R).sum())} of {len(tried_R)} positions were not tried (cft annotate "
                "positions=...), so whether they are picked is not known",
                remedy="leave them out of the loss with mask.untried=leave_out, or try them with: cft annotate "
                "annotation=<name> complete=true (and its other arguments as before)",
                overrides=self._overrides(),
            )
        if self.rule == "any":
            open_R = untried_RK.any(1) & ~counts_RK.any(1)
            picked_R = counts_RK.any(1)
        elif self.rule == "fraction":
            open_R = untried_RK.any(1)
            picked_R = counts_RK.mean(1)
        else:
            open_R = untried_RK.any(1) & (counts_RK | untried_RK).all(1)
            picked_R = counts_RK.all(1)
        if (open_R := open_R & tried_R).any():
            raise TooLittleEvidence(
                f"response {row.response_id}: {int(open_R.sum())} positions are undecided under mask.rule={self.rule}, "
                "since annotation stopped at the first right alternative",
                remedy="fill the gaps with: cft annotate annotation=<name> complete=true (and its other arguments "
                "as before)",
                overrides=self._overrides(),
            )
        return np.where(tried_R, picked_R, 0).astype(np.float32)

    def _require_evidence(self, row: AnnotatedResponse) -> None:
        """Raises MaskError for a response of the other verdict, TooLittleEvidence for one with fewer alternatives."""
        if row.verdict != self.verdict:
            raise MaskError(OTHER_VERDICT[self.verdict].format(response=row.response_id))
        stored, k = row.alt_outcome.shape[1], self.num_alternatives
        if stored < k:
            raise TooLittleEvidence(
                f"response {row.response_id}: mask.num_alternatives={k}, but the annotation holds {stored}",
                remedy=f"extend it with: cft annotate annotation=<name> num_alternatives={k} (and its other "
                "arguments as before)",
                overrides=self._overrides(),
            )

    def _overrides(self) -> str:
        usual = {"right": "all", "wrong": "any"}[self.verdict]  # the rule that short-circuit annotation can decide
        return f"num_alternatives={self.num_alternatives}{'' if self.rule == usual else ' short_circuit=false'}"


OTHER_VERDICT = {
    "right": "response {response} ends wrong, and mask=critical asks which tokens a right answer hangs on; expected "
    "mask=turning for an annotation of wrong responses, or one of right responses (cft annotate responses=solve or given)",
    "wrong": "response {response} ends right, and mask=turning asks which tokens turned a response wrong; expected "
    "mask=critical, or an annotation of wrong responses (cft annotate responses=wrong or given_wrong)",
}


class Critical(OutcomeRule):
    """Tokens whose every alternative ends wrong (CFT, arXiv 2510.10974, section 3).

    Args:
        num_alternatives: number of stored alternatives to use, in order of rank; at least 1. The paper's default is 2.
        rule: "all" alternatives must end wrong (the paper), or "any" one of them, or "fraction": the weight is the fraction of
            them that end wrong, so tokens whose every alternative ends right are not eligible. "any" and "fraction" need an
            annotation in which every alternative was tried.
        cut_off: whether a continuation that reached the token limit without an explicit answer counts as "wrong" (the paper) or
            "not_wrong". Undecided verdicts never count as wrong.
        untried: treatment of positions without any tried alternative: "refuse" the row, or "leave_out" the position, which
            then carries no loss, not even in the mask's complement.

    Raises:
        TooLittleEvidence: the annotation holds fewer alternatives, or left some untried that decide.
        MaskError: the response ends wrong.
    """

    verdict = "right"

    @in_range
    def __init__(
        self,
        *,
        num_alternatives: AtLeastOne = 2,
        rule: Rule = "all",
        cut_off: Literal["wrong", "not_wrong"] = "wrong",
        untried: Untried = "refuse",
    ) -> None:
        super().__init__(num_alternatives=num_alternatives, rule=rule, untried=untried)
        self.cut_off = cut_off

    def counts_RK(self, outcome_RK: NDArray[np.int8]) -> NDArray[np.bool_]:
        fails_RK = outcome_RK == Outcome.WRONG
        if self.cut_off == "wrong":
            fails_RK |= outcome_RK == Outcome.CUT_OFF
        return fails_RK


class Turning(OutcomeRule):
    """Tokens of a wrong response that turned it wrong: with another token in their place it ends right.

    Args:
        num_alternatives: number of stored alternatives to use, in order of rank; at least 1.
        rule: "any" one of them must end right, or "all" of them, or "fraction": the weight is the fraction that do. "all" and
            "fraction" need an annotation in which every alternative was tried.
        untried: as in `Critical`.

    Raises:
        TooLittleEvidence: the annotation holds fewer alternatives, or left some untried that decide.
        MaskError: the response ends right.
    """

    verdict = "wrong"

    @in_range
    def __init__(self, *, num_alternatives: AtLeastOne = 2, rule: Rule = "any", untried: Untried = "refuse") -> None:
        super().__init__(num_alternatives=num_alternatives, rule=rule, untried=untried)

    def counts_RK(self, outcome_RK: NDArray[np.int8]) -> NDArray[np.bool_]:
        return outcome_RK == Outcome.RIGHT


class Deciding(RowMask):
    """The tokens that decide a response, for figures and metrics: critical tokens of a right response, turning tokens of a
    wrong one. Untried positions count as tokens without evidence and are not refused.

    Args:
        num_alternatives: as in `Critical`.

    Raises:
        TooLittleEvidence: the annotation holds fewer alternatives.
    """

    @in_range
    def __init__(self, *, num_alternatives: AtLeastOne = 2) -> None:
        self.num_alternatives = num_alternatives
        self._critical = Critical(num_alternatives=num_alternatives, untried="leave_out")
        self._turning = Turning(num_alternatives=num_alternatives, untried="leave_out")

    def known(self, row: AnnotatedResponse) -> NDArray[np.bool_]:
        return self._of(row).known(row)

    def __call__(self, row: AnnotatedResponse) -> Weights:
        return self._of(row)(row)

    def _of(self, row: AnnotatedResponse) -> OutcomeRule:
        return self._critical if row.verdict == "right" else self._turning


def deciding_word(rows: Iterable[AnnotatedResponse]) -> str:
    """Name of the tokens that `Deciding` selects."""
    verdicts = {row.verdict for row in rows}
    return "turning" if verdicts == {"wrong"} else "critical"


def critical_fraction(rows: Sequence[AnnotatedResponse], *, num_alternatives: int) -> float:
    """Fraction of the tried response tokens that are critical under the paper's rule, or turning tokens of wrong responses;
    0-1, NaN if none was tried."""
    mask = Deciding(num_alternatives=num_alternatives)
    picked = [mask(row)[mask.known(row)] for row in rows]
    tried = np.concatenate(picked) if picked else np.zeros(0)
    return float(tried.mean()) if len(tried) else float("nan")
