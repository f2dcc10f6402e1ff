"""What a loss fixes once, by looking at the model before it is trained: the threshold of SED's mask.

    calibrate(lm, rows)      every threshold of an objective that asks for it; returns what was fixed, for results.json

A run that was interrupted finds the same values again: same model, same rows, no random number.
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
    """Thresholds by "term.tau". rows: from the first on, as many as the loss wants; held-out ones should come first."""
    fixed: dict[str, float] = {}
    for name, loss, where in _with_threshold(lm.objective):
        if isinstance(loss.tau, str):
            chosen = rows[: loss.calibration_rows]
            loss.tau = calibrated_threshold(lm, chosen, k=loss.k, fraction=loss.masked_out, where=where)
            fixed[f"{name}.tau"] = loss.tau
    return fixed


def share_thresholds(objective: Objective) -> None:
    """All processes get those of the first one, which alone has the weights to compute them with. Collective."""
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
    """The tau for which `fraction` of the rows' tokens has k most probable tokens that together reach tau."""
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
            f"loss: a threshold is to be calibrated on {len(rows)} rows, and none of their tokens counts (where: {where}); "
            "choose another mask, or give tau a number"
        )
    return float(masses[min(int((1 - fraction) * len(masses) + 1e-9), len(masses) - 1)])


class _TopMass:
    """A loss of zero that remembers the probability of the k most probable tokens."""

    needs: tuple[str, ...] = ()

    def __init__(self, *, k: int) -> None:
        self.k = k
        self.seen: list[Tensor] = []

    def __call__(self, prediction: Prediction) -> Tensor:
        mass_N = top_mass(prediction.logprob_NV, k=self.k)
        self.seen.append(mass_N)
        return torch.zeros_like(mass_N)
