"""What the oracle does not reach: ties, gaps, single tokens, clamps, products, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cft.weightings.row import ExcessLoss, HighEntropy, Propagation, SequenceRatio, SSToken, mean_over_selected
from cft.weightings.statistics import LIVE, TokenScores
from cft.weightings.token import EAFT, Focal, Probability, Product, ProFiT, TrimSFT, Uniform

pytestmark = pytest.mark.numerics


def scores(
    logprob: list[float], *, rows: list[int] | None = None, positions: list[int] | None = None, **known: list[float]
) -> TokenScores:
    """float64; one row of neighboring tokens where nothing else is said."""
    count = len(logprob)
    return TokenScores(
        torch.tensor(logprob, dtype=torch.float64),
        torch.tensor(rows if rows is not None else [0] * count, dtype=torch.long),
        torch.tensor(positions if positions is not None else list(range(count)), dtype=torch.long),
        max(rows or [0]) + 1,
        {name: torch.tensor(values, dtype=torch.float64) for name, values in known.items()},
    )


def close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=0, atol=1e-12)


def test_a_selection_ranks_within_rows_and_the_earlier_of_equals_wins() -> None:
    one = scores([0.0] * 7, rows=[0, 0, 0, 1, 1, 1, 1])
    chosen = one.top_of_row(torch.tensor([1.0, 5.0, 5.0, 9.0, 9.0, 9.0, 0.0]), fraction=0.5)
    assert chosen.tolist() == [0, 1, 1, 1, 1, 0, 0]  # ceil(1.5) of three, two of four


def test_a_selection_keeps_at_least_one_token_of_a_row() -> None:
    one = scores([0.0, 0.0, 0.0], rows=[0, 1, 1])
    assert one.top_of_row(torch.zeros(3), fraction=1e-12).tolist() == [1, 1, 0]


def test_a_product_that_lands_above_the_integer_it_means_selects_no_more() -> None:
    assert 0.07 * 100 > 7
    assert scores([0.0] * 100).top_of_row(torch.arange(100.0), fraction=0.07).sum() == 7


def test_minmax_of_a_row_of_equals_is_zero() -> None:
    one = scores([0.0] * 5, rows=[0, 0, 0, 2, 2])
    close(one.row_minmax(torch.tensor([1.0, 3.0, 2.0, 7.0, 7.0], dtype=torch.float64)), [0.0, 1.0, 0.5, 0.0, 0.0])


def test_the_mean_over_the_selected() -> None:
    """Row 0 keeps one of three, row 1 both: the row's sum of weights is its number of tokens."""
    one = scores([0.0] * 5, rows=[0, 0, 0, 1, 1])
    close(mean_over_selected(one, torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0])), [0.0, 3.0, 0.0, 1.0, 1.0])


def test_rho_1_prefers_what_the_reference_knows_better() -> None:
    one = scores([-3.0, -3.0, -1.0], reference_logprob=[-0.5, -4.0, -1.0])
    assert ExcessLoss(fraction=0.3)(one).tolist() == [3.0, 0.0, 0.0]


def test_entropy_selection_is_divided_by_all_tokens() -> None:
    one = scores([-1.0] * 5, entropy=[0.1, 0.5, 0.2, 0.4, 0.3])
    assert HighEntropy(fraction=0.4)(one).tolist() == [0, 1, 0, 1, 0]


def test_sstoken_before_training_follows_attention_alone() -> None:
    one = scores([-1.0, -2.0, -3.0], reference_logprob=[-1.0, -2.0, -3.0], attention_to_prompt=[0.1, 0.3, 0.2])
    assert SSToken(gamma=0.5, fraction=0.3)(one).tolist() == [0.0, 3.0, 0.0]


def test_sstoken_with_gamma_one_follows_the_gain_alone() -> None:
    one = scores([-1.0, -2.0, -3.0], reference_logprob=[-1.0, -2.0, -4.0], attention_to_prompt=[0.9, 0.3, 0.2])
    assert SSToken(gamma=1.0, fraction=0.3)(one).tolist() == [0.0, 0.0, 3.0]


def test_propagation_counts_a_gap_as_distance() -> None:
    """Tokens at positions 4, 5 and 8 of row 0, one token in row 1: against the sum written out."""
    one = scores([-1.0, -2.0, -4.0, -3.0], rows=[0, 0, 0, 1], positions=[4, 5, 8, 2])
    s = [1 + 0.5 * 2 + 0.5**4 * 4, 2 + 0.5**3 * 4, 4.0]
    expected = [3 * x / sum(s) for x in s] + [1.0]
    close(Propagation(gamma=0.5, detached=True)(one), expected)


def test_propagation_with_gamma_one_is_the_rest_of_the_rows_loss() -> None:
    one = scores([-1.0] * 6)
    close(Propagation(gamma=1.0, detached=True)(one), [6 * x / 21 for x in (6, 5, 4, 3, 2, 1)])


def test_propagation_of_a_row_without_loss_is_finite() -> None:
    assert torch.isfinite(Propagation(gamma=0.9, detached=False)(scores([0.0, 0.0]))).all()


def test_one_ratio_a_sequence_and_its_clamp() -> None:
    one = scores([-1.0, -2.0, -0.5], rows=[0, 0, 1], reference_logprob=[-2.0, -2.0, -9.0])
    close(SequenceRatio(temperature=1.0, largest=16.0)(one), [math.exp(0.5), math.exp(0.5), 16.0])
    close(SequenceRatio(temperature=2.0, largest=1e9)(one), [math.exp(1.0), math.exp(1.0), math.exp(17.0)])


def test_focal_at_certainty_is_finite_with_its_gradient() -> None:
    for gamma in (0.0, 0.5, 2.0):
        logprob = torch.tensor([0.0, -1e-30, -1.0], dtype=torch.float64, requires_grad=True)
        one = TokenScores(logprob, torch.zeros(3, dtype=torch.long), torch.arange(3), 1, {})
        (Focal(gamma=gamma, detached=False)(one) * -logprob).sum().backward()
        assert logprob.grad is not None
        assert torch.isfinite(logprob.grad).all()


def test_profits_threshold_is_not_passed_by_itself() -> None:
    assert ProFiT(threshold=0.5)(scores([math.log(0.5), math.log(0.51)])).tolist() == [0, 1]


def test_trimsft_and_eaft_at_their_centres() -> None:
    one = scores([-1.0, -1.0], margin=[1.5, 2.3], top_entropy=[3.0, 1.5])
    close(TrimSFT(center=1.5, width=0.8)(one), [1.0, math.exp(-0.5)])
    close(EAFT(exponent=2.0, scale=3.0)(one), [1.0, 0.25])


def test_a_product_keeps_each_factor_as_it_is() -> None:
    """d/dl of sg(e^l) (1 - e^l)^2: the gradient flows through the second factor alone."""
    both = Product(factors={"a": Probability(), "b": Focal(gamma=2.0, detached=False)})
    assert (both.detached, both.needs) == (False, ())
    logprob = torch.tensor([-0.5], dtype=torch.float64, requires_grad=True)
    both(TokenScores(logprob, torch.zeros(1, dtype=torch.long), torch.arange(1), 1, {})).backward()
    p = math.exp(-0.5)
    assert logprob.grad is not None
    close(logprob.grad, [p * 2 * (1 - p) * -p])


def test_a_product_needs_what_its_factors_need() -> None:
    product = Product(factors={"a": ExcessLoss(fraction=0.5), "b": EAFT(exponent=1.0, scale=3.0), "c": Uniform()})
    assert product.needs == ("reference_logprob", "top_entropy")
    assert product.detached


def test_a_product_of_two_selections_is_refused_however_it_is_nested() -> None:
    """Two rankings of all eligible tokens: the first keeps the first token, the second the last, the product none."""
    one = scores([-1.0] * 2, reference_logprob=[0.0, -2.0], entropy=[0.1, 0.5])
    excess, entropy = ExcessLoss(fraction=0.5), HighEntropy(fraction=0.5)
    assert (excess(one) * entropy(one)).sum() == 0
    with pytest.raises(ValueError, match=r"at most one selection by rank, found a, b"):
        Product(factors={"a": excess, "b": entropy})
    nested = Product(factors={"a": entropy, "b": Uniform()})
    with pytest.raises(ValueError, match=r"at most one selection by rank, found a, b"):
        Product(factors={"a": excess, "b": nested})


def test_live_statistics_against_distributions() -> None:
    logits = 2 * torch.randn(6, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 5, 7, 39, 2, 1])
    logits[torch.arange(0, 6, 2), target[::2]] += 8.0
    logprob = logits.log_softmax(-1)
    categorical = torch.distributions.Categorical
    torch.testing.assert_close(LIVE["entropy"](logprob, target), categorical(logits=logits).entropy())
    top = logits.sort(-1, descending=True).values[:, :20]
    torch.testing.assert_close(LIVE["top_entropy"](logprob, target), categorical(logits=top).entropy())
    for row, (z, y) in enumerate(zip(logits.tolist(), target.tolist(), strict=True)):
        best_other = max(x for v, x in enumerate(z) if v != y)
        assert float(LIVE["margin"](logprob, target)[row]) == pytest.approx(z[y] - best_other, abs=1e-12)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_a_share_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"HighEntropy\.fraction: expected .*found"):
        HighEntropy(fraction=fraction)


def test_a_gamma_or_width_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Propagation\.gamma"):
        Propagation(gamma=1.5, detached=False)
    with pytest.raises(ValueError, match=r"TrimSFT\.width"):
        TrimSFT(center=1.0, width=0.0)
