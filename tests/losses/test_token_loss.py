"""Token losses where the oracle does not look: values, clips, float32 at the edges, and SED's calibration."""

from __future__ import annotations

import math

import pytest
import torch

from cft.losses.coefficient import Coefficient
from cft.losses.regularizers import KLFromReference, KLToReference, MaskedQuadratic, NegativeEntropy, Regularizer
from cft.losses.target import GEM, Distillation, LabelSmoothing, TargetSFT
from cft.losses.token import NLL, ClippedRatio, Power, Prediction, SymmetricCE, TokenLoss
from cft.training.calibration import calibrate, calibrated_threshold
from cft.training.selective_lm import SelectiveLM
from tests.fakes import random_llama
from tests.gradient_driver import rows
from tests.objectives import sft
from tests.precision import ROUNDING, STORED

pytestmark = pytest.mark.numerics


def prediction(
    p: list[float], *, target: int = 0, reference: list[float] | None = None, old: float = 0.5
) -> Prediction:
    given = None if reference is None else torch.tensor([reference], dtype=torch.float64).log()
    stored = {"reference_logprob": torch.tensor([math.log(old)])}
    return Prediction(torch.tensor([p], dtype=torch.float64).log(), torch.tensor([target]), given, stored)


def value(loss: TokenLoss, given: Prediction) -> float:
    (found,) = loss(given).tolist()
    return found


def test_values_against_hand_computation() -> None:
    p, r = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]
    given = prediction(p, reference=r)
    assert value(NLL(), given) == pytest.approx(math.log(2))
    assert value(Power(exponent=0.5), given) == pytest.approx(2 * (1 - math.sqrt(0.5)))
    symmetric = SymmetricCE(ce_weight=1.0, rce_weight=0.1, label_floor=1e-4, prob_floor=0.25)
    assert value(symmetric, given) == pytest.approx(math.log(2) + 0.1 * math.log(1e4) * (0.3 + 0.25))
    exact = SymmetricCE(ce_weight=2.0, rce_weight=0.5, label_floor=1e-4, prob_floor=0.0)
    assert value(exact, given) == pytest.approx(2 * math.log(2) + 0.5 * math.log(1e4) * (1 - 0.5))
    assert exact.log_prob_alone
    assert not symmetric.log_prob_alone
    smooth = [0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]
    assert value(LabelSmoothing(smoothing=0.1), given) == pytest.approx(-sum(map(_times_log, smooth, p)))
    taught = [0.5 + 0.05, 0.3, 0.15]
    assert value(Distillation(teacher_weight=0.5), given) == pytest.approx(-sum(map(_times_log, taught, p)))
    assert value(KLFromReference(), given) == pytest.approx(sum(b * math.log(b / a) for a, b in zip(p, r, strict=True)))
    assert value(KLToReference(), given) == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, r, strict=True)))
    assert value(NegativeEntropy(), given) == pytest.approx(sum(map(_times_log, p, p)))
    gem = sum(q * (math.log(0.5) - math.log(x)) for q, x in zip(p, p, strict=True))  # beta 1: q = p
    assert value(GEM(beta=1.0, h="linear"), given) == pytest.approx(-gem)
    target = [0.5 + 0.5 * r[0], 0.5 * r[1], 0.5 * r[2]]  # eta 1: what is left goes to the teacher
    assert value(TargetSFT(eta=1.0), given) == pytest.approx(-sum(map(_times_log, target, p)))


def _times_log(q: float, x: float) -> float:
    return q * math.log(x)


@pytest.mark.parametrize(("p", "expected"), [(0.5, -1.0), (0.64, -1.28), (0.9, -1.28), (0.1, -0.2)])
def test_psft_clips_above_and_never_below(p: float, expected: float) -> None:
    loss = ClippedRatio(eps_low=0.2, eps_high=0.28)
    assert value(loss, prediction([p, 1 - p], old=0.5)) == pytest.approx(
        expected, rel=STORED
    )  # the stored column is float32


def test_sed_acts_where_the_top_two_are_short_of_tau() -> None:
    unsure, sure = prediction([0.2, 0.3, 0.5]), prediction([0.1, 0.1, 0.8])
    loss = MaskedQuadratic(k=2, tau=0.85, masked_out=0.7, calibration_rows=10)
    assert value(loss, unsure) == pytest.approx(0.3**2)
    assert value(loss, sure) == 0.0


EVERY_LOSS: list[TokenLoss] = [
    NLL(),
    Power(exponent=0.5),
    LabelSmoothing(smoothing=0.1),
    Distillation(teacher_weight=0.5),
    TargetSFT(eta=0.5),
    GEM(beta=0.7, h="linear"),
    GEM(beta=0.7, h="log_sigmoid"),
    KLFromReference(),
    KLToReference(),
    NegativeEntropy(),
    ClippedRatio(eps_low=0.2, eps_high=0.28),
    SymmetricCE(ce_weight=1.0, rce_weight=0.1, label_floor=1e-4, prob_floor=1e-7),
    SymmetricCE(ce_weight=1.0, rce_weight=0.1, label_floor=1e-4, prob_floor=0.0),
    MaskedQuadratic(k=2, tau=0.5, masked_out=0.7, calibration_rows=9),
]


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=lambda loss: type(loss).__name__)
def test_extreme_logits_stay_finite_in_float32(loss: TokenLoss) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    reference = torch.tensor([[-200.0, 200.0, 0.0], [200.0, 0.0, 0.0], [9.0, 0.0, 0.0]]).log_softmax(-1)
    given = Prediction(
        logits.log_softmax(-1), torch.tensor([0, 0, 0]), reference, {"reference_logprob": torch.full((3,), -1.0)}
    )
    loss(given).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(loss(given)).all()
    assert torch.isfinite(logits.grad).all()


def regularized(*, fraction: float, count: int) -> SelectiveLM:
    loss = MaskedQuadratic(k=2, tau="calibrated", masked_out=fraction, calibration_rows=count)
    term = Regularizer(
        where="response", token_loss=loss, coefficient=Coefficient(initial=1.0, final=0.0, shape="constant")
    )
    return SelectiveLM(random_llama(spread=0.3), sft(regularizers={"sed": term}, chunk_tokens=7))


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("fraction", [0.3, 0.7, 1.0])
def test_calibration_masks_out_the_share_it_was_asked_for(fraction: float) -> None:
    """Against the top-2 mass of every response token, from the model's logits."""
    lm, data = regularized(fraction=fraction, count=100).double(), rows()
    fixed = calibrate(lm, data)
    masses = []
    for row in data:
        p = lm.model(input_ids=torch.from_numpy(row.ids)[None]).logits[0].softmax(-1).detach()
        masses += [float(p[t - 1].topk(2).values.sum()) for t in range(1, len(row.ids)) if row.token_group[t] >= 0]
    left_alone = sum(mass >= fixed["sed.tau"] - ROUNDING for mass in masses) / len(masses)
    assert left_alone == pytest.approx(fraction, abs=1 / len(masses))
    (loss,) = (r.token_loss for r in lm.objective.regularizers.values())
    assert isinstance(loss, MaskedQuadratic)
    assert loss.tau == fixed["sed.tau"]
    assert calibrate(lm, data) == {}  # once


def test_calibration_looks_at_as_many_rows_as_it_was_told_to() -> None:
    lm = regularized(fraction=0.5, count=2)
    expected = calibrated_threshold(lm, rows()[:2], k=2, fraction=0.5, where="response")
    assert calibrate(lm, rows()) == {"sed.tau": expected}
    assert calibrated_threshold(lm, rows(), k=2, fraction=0.5, where="response") != expected


def test_calibration_leaves_the_model_in_its_mode() -> None:
    lm = regularized(fraction=0.5, count=3)
    for training in (True, False):
        lm.model.train(training)
        calibrated_threshold(lm, rows()[:1], k=2, fraction=0.5, where="response")
        assert lm.model.training is training


def test_calibration_without_tokens_and_use_without_calibration_are_refused() -> None:
    lm = regularized(fraction=0.5, count=3)
    with pytest.raises(ValueError, match="none of their tokens is selected"):
        calibrated_threshold(lm, [], k=2, fraction=0.5, where="response")
    with pytest.raises(RuntimeError, match="calibrated before the first step"):
        MaskedQuadratic(k=2, tau="calibrated", masked_out=0.7, calibration_rows=9)(prediction([0.5, 0.5]))


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"GEM\.beta"):
        GEM(beta=0.0, h="linear")
    with pytest.raises(ValueError, match=r"\.smoothing"):
        LabelSmoothing(smoothing=1.5)
    with pytest.raises(ValueError, match=r"TargetSFT\.eta"):
        TargetSFT(eta=-1.0)
    with pytest.raises(ValueError, match=r"ClippedRatio\.eps_low"):
        ClippedRatio(eps_low=-0.1, eps_high=0.28)
    with pytest.raises(ValueError, match=r"masked_out"):
        MaskedQuadratic(k=2, tau=0.5, masked_out=0.0, calibration_rows=9)
