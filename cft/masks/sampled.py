"""The critical mask over sampled evidence: how often alternatives end right, instead of whether the greedy one does."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cft.masks.base import MaskError, RowMask, TooLittleEvidence, Weights
from cft.masks.critical import OTHER_VERDICT, Untried
from cft.ranges import AtLeastOne, Fraction, in_range
from cft.types import AnnotatedResponse


def success(row: AnnotatedResponse, *, cut_off: Literal["wrong", "not_wrong"] = "wrong") -> NDArray[np.float64]:
    """[R, K + 1] fraction of the samples that end right, column 0 after the response's own token; NaN without samples.

    Undecided samples are not counted, nor are those that reached the limit if `cut_off` is "not_wrong".
    """
    judged = row.sampled - row.sampled_undecided - (row.sampled_cut_off if cut_off == "not_wrong" else 0)
    return np.where(judged > 0, row.sampled_right / np.maximum(judged, 1), np.nan)


class CriticalSampled(RowMask):
    """Tokens whose alternatives seldom lead to a right answer, by samples (cft annotate evidence=sampled).

    Args:
        num_alternatives: number of stored alternatives to use, in order of rank; at least 1.
        max_success: an alternative fails if at most this fraction of its samples ends right, 0 to 1.
        min_drop: and if the fraction is at least this much lower than after the response's own token, 0 to 1.
        rule: "all" alternatives must fail, or "any" one of them.
        weight: "one" for each selected token, or "drop": the mean of the alternatives subtracted from the fraction after the
            response's own token; a token without a drop is not selected.
        cut_off: whether a sample that reached the token limit without an explicit answer counts as "wrong" or, with
        "not_wrong",
            is not counted. Undecided samples are never counted; an alternative without counted samples does not fail.
        untried: positions without samples: "refuse" the row, or "leave_out" them.

    Raises:
        TooLittleEvidence: the annotation has no samples, fewer alternatives, or positions without samples.
        MaskError: the response ends wrong.
    """

    evidence = ("samples",)

    @in_range
    def __init__(
        self,
        *,
        num_alternatives: AtLeastOne = 2,
        max_success: Fraction = 0.5,
        min_drop: Fraction = 0.0,
        rule: Literal["all", "any"] = "all",
        weight: Literal["one", "drop"] = "one",
        cut_off: Literal["wrong", "not_wrong"] = "wrong",
        untried: Untried = "refuse",
    ) -> None:
        self.num_alternatives = num_alternatives
        self.max_success, self.min_drop = max_success, min_drop
        self.rule, self.weight = rule, weight
        self.cut_off: Literal["wrong", "not_wrong"] = cut_off
        self.untried = untried

    def known(self, row: AnnotatedResponse) -> NDArray[np.bool_]:
        self._require_samples(row)
        return np.all(row.sampled[:, : self.num_alternatives + 1] > 0, axis=1)

    def __call__(self, row: AnnotatedResponse) -> Weights:
        known_R = self.known(row)
        if self.untried == "refuse" and not known_R.all():
            raise TooLittleEvidence(
                f"response {row.response_id}: {int((~known_R).sum())} of {len(known_R)} positions have no samples",
                remedy="leave them out of the loss with mask.untried=leave_out, or draw them with: cft annotate "
                "annotation=<name> complete=true (and its other arguments as before)",
                overrides="evidence=sampled",
            )
        p_RJ = success(row, cut_off=self.cut_off)[:, : self.num_alternatives + 1]
        own_R1, alternatives_RK = p_RJ[:, :1], p_RJ[:, 1:]
        # Comparisons with NaN are false.
        fails_RK = (alternatives_RK <= self.max_success) & (own_R1 - alternatives_RK >= self.min_drop)
        picked_R = (fails_RK.all(1) if self.rule == "all" else fails_RK.any(1)) & known_R
        if self.weight == "one":
            return picked_R.astype(np.float32)
        drop_RK = np.where(np.isnan(alternatives_RK), np.nan, own_R1 - alternatives_RK)
        counted_R = np.maximum((~np.isnan(drop_RK)).sum(1), 1)
        drop_R = np.maximum(np.nansum(drop_RK, axis=1) / counted_R, 0.0)
        return np.where(picked_R, drop_R, 0.0).astype(np.float32)

    def _require_samples(self, row: AnnotatedResponse) -> None:
        if row.verdict != "right":
            raise MaskError(OTHER_VERDICT["right"].format(response=row.response_id))
        stored, k = row.sampled.shape[1] - 1, self.num_alternatives
        if row.sampled.size and stored >= k:
            return
        found = f"samples of {stored} alternatives" if row.sampled.size else "no samples"
        raise TooLittleEvidence(
            f"response {row.response_id}: mask.num_alternatives={k}, but the annotation holds {found}",
            remedy=f"annotate with: cft annotate evidence=sampled num_alternatives={k} (under another name, where there are no "
            "samples yet)",
            overrides=f"evidence=sampled num_alternatives={k}",
        )
