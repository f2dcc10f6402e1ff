"""The objective against closed forms: cross-entropy of transformers, DFT, normalizers, zero gradient where the mask is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from cft.data.batches import TokenRow
from cft.losses.eligible import eligible_tokens
from cft.losses.objective import token_statistics
from cft.training.selective_lm import SelectiveLM
from cft.types import TokenBatch
from cft.weightings.token import Probability, Uniform
from tests.architectures import collate, gradients, token_row
from tests.fakes import exact_llama
from tests.objectives import on_logits, sft
from tests.precision import assert_same

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("in_float64")]


def batch_of(densities: list[float]) -> TokenBatch:
    return collate([token_row(12 + 3 * i, 4 + i, density=d, seed=i) for i, d in enumerate(densities)])


def test_all_true_mask_is_the_cross_entropy_of_transformers() -> None:
    model, batch = exact_llama(), batch_of([1.0, 1.0, 1.0])
    (loss,) = SelectiveLM(model, sft())(batch)
    (loss.sum / loss.count).backward()
    ours = gradients(model)
    labels = batch.input_ids_BT.masked_fill(batch.token_group_BT < 0, -100)
    position = torch.arange(labels.shape[1])
    theirs = model(
        input_ids=batch.input_ids_BT, attention_mask=(position < batch.lengths_B[:, None]).long(), labels=labels
    ).loss
    theirs.backward()
    assert_same(float(loss.sum.detach() / loss.count), float(theirs.detach()))
    assert_same(ours, gradients(model))


def naive(model: torch.nn.Module, batch: TokenBatch, *, dft: bool) -> tuple[torch.Tensor, int]:
    """Token by token, written down apart from cft.losses.objective."""
    total, count = torch.zeros(()), 0
    for b, length in enumerate(batch.lengths_B.tolist()):
        logits = model(input_ids=batch.input_ids_BT[b : b + 1, :length]).logits[0]
        for t, weight in enumerate(batch.weight_BT[b, :length].tolist()):
            if weight > 0:
                nll = cross_entropy(logits[t - 1], batch.input_ids_BT[b, t])
                total = total + weight * nll * ((-nll).exp().detach() if dft else 1.0)
                count += 1
    return total, count


@pytest.mark.parametrize(("dft", "chunk_tokens"), product((False, True), (1, 5, 1024)))
def test_sum_count_and_gradient_equal_the_naive_computation(dft: bool, chunk_tokens: int) -> None:
    model, batch = exact_llama(), batch_of([0.4, 0.0, 0.9])
    weighting = Probability() if dft else Uniform()
    (loss,) = SelectiveLM(model, sft(weighting=weighting, chunk_tokens=chunk_tokens))(batch)
    loss.sum.backward()
    ours = gradients(model)
    total, count = naive(model, batch, dft=dft)
    total.backward()
    assert int(loss.count) == count > 0
    assert_same(float(loss.sum), float(total))
    assert_same(ours, gradients(model))


def test_dft_gradient_is_its_closed_form_at_the_logits() -> None:
    """d/dz of -sg(p_y) log p_y is p_y (p - onehot): the target distribution is p_y onehot + (1 - p_y) p."""
    logits = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.arange(6)
    batch = collate(
        [TokenRow("r", np.r_[0, np.arange(6)], np.r_[0, np.ones(6)].astype(np.float32), np.ones(7, np.int8))]
    )
    hidden = torch.cat([logits, torch.zeros(1, 9, dtype=torch.float64)])[None]
    on_logits(sft(weighting=Probability()), batch, hidden)[0].sum.backward()
    p = logits.detach().softmax(-1)
    own = p.gather(1, target[:, None])
    expected = own * (p - torch.nn.functional.one_hot(target, 9))
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-12)


def test_gradient_is_exactly_zero_where_the_mask_is() -> None:
    batch = batch_of([0.5, 0.3])
    hidden = torch.randn(2, batch.input_ids_BT.shape[1], 60, requires_grad=True)
    on_logits(sft(), batch, hidden)[0].sum.backward()
    assert hidden.grad is not None
    predicts = torch.zeros_like(batch.weight_BT, dtype=torch.bool)
    predicts[:, :-1] = batch.weight_BT[:, 1:] > 0
    assert (hidden.grad[~predicts] == 0).all()
    assert (hidden.grad[predicts].abs().sum(-1) > 0).all()


def test_labels_are_the_next_token() -> None:
    """A model that is certain of the right next token has no loss; labels shifted by one would cost it dearly."""
    batch = batch_of([1.0])
    ids = batch.input_ids_BT[0]
    hidden = torch.zeros(1, len(ids), 60)
    hidden[0, torch.arange(len(ids) - 1), ids[1:]] = 50.0
    assert float(on_logits(sft(), batch, hidden)[0].sum) < 1e-6


def test_counts_of_the_normalizers() -> None:
    batch = batch_of([0.4, 0.0, 0.9])
    hidden = torch.randn(3, batch.input_ids_BT.shape[1], 60, dtype=torch.float64)
    losses = {n: on_logits(sft(normalizer=n), batch, hidden)[0] for n in ("critical", "response", "sequence")}
    eligible = batch.weight_BT > 0
    assert int(losses["critical"].count) == int(eligible.sum())
    assert int(losses["response"].count) == int((batch.token_group_BT >= 0).sum())
    assert int(losses["sequence"].count) == 2  # the row without an eligible token does not count
    assert float(losses["critical"].sum) == float(losses["response"].sum)
    means = []
    for b in (0, 2):
        at = eligible[b].nonzero()[:, 0]
        means.append(float(cross_entropy(hidden[b, at - 1], batch.input_ids_BT[b, at])))
    assert_same(float(losses["sequence"].sum), sum(means))


def test_nothing_eligible_is_zero_and_every_parameter_takes_part() -> None:
    model = exact_llama(tie_word_embeddings=False)
    for batch in (batch_of([0.0, 0.0]), collate([])):
        (loss,) = SelectiveLM(model, sft())(batch)
        assert (float(loss.sum), float(loss.count)) == (0.0, 0.0)
        loss.sum.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert (parameter.grad == 0).all(), name
        model.zero_grad()


def test_the_first_token_of_a_row_is_never_eligible() -> None:
    row = TokenRow("r", np.array([5, 6]), np.ones(2, np.float32), np.ones(2, np.int8))
    tokens = eligible_tokens(collate([row]), torch.ones(1, 2, dtype=torch.bool))
    assert (tokens.position_N.tolist(), tokens.target_N.tolist()) == ([1], [6])


def test_token_statistics() -> None:
    hidden, target = torch.randn(7, 60, dtype=torch.float64), torch.arange(7)
    found = token_statistics(hidden, target, lambda h: h, chunk_tokens=3)
    assert_same(found.nll_N, cross_entropy(hidden, target, reduction="none"))
    assert_same(found.entropy_N, torch.distributions.Categorical(logits=hidden).entropy())
