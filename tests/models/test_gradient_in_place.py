"""Gradients of the vocabulary's matrices, added in place, against autograd's own."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from cft.models.cpu import gradient_in_place, onednn_linear
from cft.models.cpu.gradient_in_place import InPlaceEmbedding, gradients_in_place, use_in_place_embeddings
from cft.models.cpu.onednn_linear import available, use_onednn
from cft.models.cpu.recomputed_layers import use_recomputed_layers
from cft.training.selective_lm import SelectiveLM
from tests.architectures import gradients, uneven
from tests.fakes import exact_llama, random_llama
from tests.objectives import sft
from tests.precision import Measured, assert_as_exact_as_torch, float64

pytestmark = pytest.mark.numerics


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "MIN_WEIGHTS", 0)
    monkeypatch.setattr(onednn_linear, "BLOCK", 7)
    monkeypatch.setattr(gradient_in_place, "MIN_WEIGHTS", 0)


def of_two_micro_batches(model: PreTrainedModel, *, chunk_tokens: int = 1000, in_place: bool = False) -> Measured:
    lm = SelectiveLM(model.train(), sft(chunk_tokens=chunk_tokens), layout="packed")
    for _ in range(2):
        (term,) = lm(uneven())
        with gradients_in_place(enabled=in_place):
            term.sum.backward()
    return (gradients(model),)


@cache
def torchs_and_exact(tied: bool) -> tuple[Measured, Measured]:
    torchs = of_two_micro_batches(random_llama(tie_word_embeddings=tied))
    with float64():
        return torchs, of_two_micro_batches(exact_llama(tie_word_embeddings=tied))


@pytest.mark.skipif(not available(), reason="no oneDNN products on this machine")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk_tokens", [3, 1000])  # all but the last chunk are computed again
@pytest.mark.parametrize("checkpointing", [True, False])
def test_two_micro_batches_add_up_as_autograd_adds_them(tied: bool, chunk_tokens: int, checkpointing: bool) -> None:
    for in_place in (False, True):
        model = random_llama(tie_word_embeddings=tied).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        use_onednn(model)
        use_recomputed_layers(model)
        assert use_in_place_embeddings(model) == 1
        found = of_two_micro_batches(model, chunk_tokens=chunk_tokens, in_place=in_place)
        assert_as_exact_as_torch(found, *torchs_and_exact(tied))


def lookup(*, padding: int | None = None) -> nn.Embedding:
    torch.manual_seed(0)
    layer = nn.Embedding(9, 4, padding_idx=padding)
    assert use_in_place_embeddings(layer) == 1
    assert type(layer) is InPlaceEmbedding
    return layer


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_lookups_gradient_is_nn_embeddings(padding: int | None, in_place: bool) -> None:
    ids_BT = torch.tensor([[1, 2, 2, 5], [5, 0, 8, 2]])
    layer, plain = lookup(padding=padding), nn.Embedding(9, 4, padding_idx=padding)
    plain.load_state_dict(layer.state_dict())
    weights_BTD = torch.arange(32.0).view(2, 4, 4)
    for embedding in (layer, plain):
        for _ in range(2):
            with gradients_in_place(enabled=in_place):
                (embedding(ids_BT) * weights_BTD).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad, rtol=0, atol=0)


def test_outside_a_training_pass_nothing_is_written() -> None:
    """torch.autograd.grad must not fill .grad behind its caller's back."""
    layer = lookup()
    (found,) = torch.autograd.grad(layer(torch.tensor([[3, 3]])).sum(), layer.weight)
    assert layer.weight.grad is None
    assert found[3].tolist() == [2.0] * 4


def test_a_weight_that_somebody_watches_is_left_to_autograd() -> None:
    """Under DDP, say, each gradient is waited for."""
    layer, seen = lookup(), []
    layer.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad))
    with gradients_in_place(enabled=True):
        layer(torch.tensor([[3]])).sum().backward()
    assert len(seen) == 1


def test_embeddings_with_rules_of_their_own_stay_as_they_are() -> None:
    special = nn.ModuleList([nn.Embedding(9, 4, sparse=True), nn.Embedding(9, 4, max_norm=1.0)])
    assert use_in_place_embeddings(special) == 0
