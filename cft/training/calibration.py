"""Calibration of loss thresholds on the model before training: the tau of SED's mask.

    calibrate(lm, rows)      sets every threshold of the objective that requests calibration; returns them for results.json

Calibration uses no random numbers, so a resumed run computes the same values from the same model and rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from cft.data.batches import TokenRow, collate
from cft.errors import BadValue
from cft.losses.aggregation import TokenMean
from cft.losses.coefficient import Coefficient
from cft.losses.eligible import On
from cft.losses.objective import Objective
from cft.losses.regularizers import MaskedQuadratic, Regularizer, top_mass
from cft.losses.token import NLL, Prediction, TokenLoss
from cft.models.attention import usable_attention
from cft.training.selective_lm import SelectiveLM
from cft.types import StepCounts
from cft.weightings.token import Uniform

ROWS_AT_A_TIME = 8


def calibrate(lm: SelectiveLM, rows: Sequence[TokenRow]) -> dict[str, float]:
    """Calibrate all thresholds of the objective that are not yet numbers.

    Args:
        lm: the model before training.
        rows: each loss uses its first `calibration_rows` rows; held-out rows should come first.

    Returns:
        "<term>.tau" -> threshold.
    """
    fixed: dict[str, float] = {}
    for name, loss, where in _with_threshold(lm.objective):
        if isinstance(loss.tau, str):
            chosen = rows[: loss.calibration_rows]
            loss.tau = calibrated_threshold(lm, chosen, k=loss.k, fraction=loss.masked_out, where=where)
            fixed[f"{name}.tau"] = loss.tau
    return fixed


def share_thresholds(objective: Objective) -> None:
    """Broadcast the thresholds of rank 0, the only rank with weights to compute them, to all ranks. Collective."""
    losses = [loss for _, loss, _ in _with_threshold(objective)]
    found = [loss.tau for loss in losses]
    if found:
        dist.broadcast_object_list(found, src=0)
    for loss, tau in zip(losses, found, strict=True):
        loss.tau = tau


def _with_threshold(objective: Objective) -> list[tuple[str, MaskedQuadratic, On]]:
    terms: dict[str, tuple[TokenLoss, On]] = {"loss": (objective.token_loss, "eligible")}
    terms |= {name: (r.token_loss, r.where) for name, r in objective.regularizers.items()}
    return [(name, loss, where) for name, (loss, where) in terms.items() if isinstance(loss, MaskedQuadratic)]


def calibrated_threshold(
    lm: SelectiveLM, rows: Sequence[TokenRow], *, k: int, fraction: float, where: On = "eligible"
) -> float:
    """The tau that the total probability of the k most probable tokens reaches at `fraction` of the rows' tokens."""
    record = _TopMass(k=k)
    term = Regularizer(
        where=where, token_loss=record, coefficient=Coefficient(initial=0.0, final=0.0, shape="constant")
    )
    watching = Objective(
        Uniform(),
        token_loss=NLL(),
        aggregation=TokenMean(),
        normalizer="critical",
        regularizers={"record": term},
        chunk_tokens=lm.objective.chunk_tokens,
    )
    observer = SelectiveLM(lm.model, watching)
    was_training = lm.model.training
    observer.eval()
    with torch.no_grad():
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            batch = collate(rows[start : start + ROWS_AT_A_TIME], step_counts=StepCounts())
            with usable_attention(lm.model):
                observer(batch.to(lm.model.device))
    lm.model.train(was_training)
    masses = torch.cat(record.seen).sort().values if record.seen else torch.zeros(0)
    if not len(masses):
        raise BadValue(
            f"loss: cannot calibrate a threshold on {len(rows)} rows, since none of their tokens is selected (where: {where}); "
            "choose another mask, or set tau to a number"
        )
    return float(masses[min(int((1 - fraction) * len(masses) + 1e-9), len(masses) - 1)])


class _TopMass:
    """A zero loss that records the total probability of the k most probable tokens."""

    needs: tuple[str, ...] = ()

    def __init__(self, *, k: int) -> None:
        self.k = k
        self.seen: list[Tensor] = []

    def __call__(self, prediction: Prediction) -> Tensor:
        mass_N = top_mass(prediction.logprob_NV, k=self.k)
        self.seen.append(mass_N)
        return torch.zeros_like(mass_N)
