"""oneDNN's products against torch's own: value, gradients, and everything else a linear layer is used for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from cft.models.cpu import onednn_linear
from cft.models.cpu.onednn_linear import OneDnnLinear, available, steps_down, steps_up, use_onednn
from cft.models.load import Lora, apply_lora
from cft.training.selective_lm import SelectiveLM
from tests.architectures import gradients, uneven
from tests.fakes import exact_llama, random_llama
from tests.objectives import sft
from tests.precision import Measured, assert_as_exact_as_torch, float64

pytestmark = pytest.mark.numerics
needs_onednn = pytest.mark.skipif(not available(), reason="no oneDNN products on this machine")


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "MIN_WEIGHTS", 0)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 70), (33, 70), (2, 5, 70), (0, 70), (64, 70), (9, 11, 70)])
def test_value_and_gradients_are_torchs(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(70, 130, bias=bias)
    ours, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    assert use_onednn(ours) == 1
    found = []
    for layer in (ours, plain, exact):
        torch.manual_seed(1)
        x = torch.randn(shape).to(layer.weight.dtype).requires_grad_()
        y = layer(x)
        # a gradient that does not lie as y does
        y.transpose(0, -1).backward(torch.randn(y.transpose(0, -1).shape).to(y.dtype))
        assert x.grad is not None
        made = (y, x.grad, layer.weight.grad, *([layer.bias.grad] if bias else []))
        found.append(tuple(part.detach() for part in made))
    if 0 in shape:
        assert [part.tolist() for part in found[0]] == [part.tolist() for part in found[2]]
    else:
        assert_as_exact_as_torch(*found)


def test_rows_come_in_few_numbers() -> None:
    """Code is generated for each; a training whose lengths differ from batch to batch would go on making it."""
    seen = {steps_up(rows) for rows in range(1, 4097)} | {steps_down(rows) for rows in range(1, 4097)}
    assert len(seen) < 80
    for rows in range(1, 4097):
        assert steps_down(rows) <= rows <= steps_up(rows)
        assert steps_up(rows) - rows < max(32, rows / 15)
        assert steps_up(steps_up(rows)) == steps_up(rows)


def measured(model: PreTrainedModel) -> Measured:
    """Loss and gradient of a training step."""
    (term,) = SelectiveLM(model.train(), sft(chunk_tokens=7), layout="packed")(uneven())
    term.sum.backward()
    return term.sum.detach(), gradients(model)


@needs_onednn
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_whole_model_trains_alike(tied: bool, checkpointing: bool) -> None:
    model = random_llama(tie_word_embeddings=tied)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert use_onednn(model) == 15
    torchs = measured(random_llama(tie_word_embeddings=tied))
    with float64():
        exact = measured(exact_llama(tie_word_embeddings=tied))
    assert_as_exact_as_torch(measured(model), torchs, exact)


@needs_onednn
def test_inference_mode_keeps_torchs_bits() -> None:
    """Engines settle near ties by the plain model; training must not change what they compare with."""
    model, ids = random_llama(), torch.arange(1, 30)[None]
    with torch.inference_mode():
        before = model(ids).logits
        use_onednn(model)
        assert torch.equal(model(ids).logits, before)


@needs_onednn
def test_copies_and_saved_weights_are_their_own() -> None:
    """A frozen copy is what references are made of; were its forward bound to the first model, it would train along."""
    model = random_llama()
    names = list(model.state_dict())
    use_onednn(model)
    assert list(model.state_dict()) == names
    frozen = copy.deepcopy(model)
    hidden = torch.randn(3, 32)
    before = frozen.lm_head(hidden)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert torch.equal(frozen.lm_head(hidden), before)


@needs_onednn
def test_layers_under_adapters_take_part_and_stay_frozen() -> None:
    model = random_llama()
    apply_lora(model, lora=Lora(r=2))
    use_onednn(model)
    bases = [module for name, module in model.named_modules() if name.endswith("base_layer")]
    assert bases
    assert all(type(module) is OneDnnLinear for module in bases)
    (term,) = SelectiveLM(model.train(), sft(), layout="packed")(uneven())
    term.sum.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name


@needs_onednn
def test_mixed_precision_and_float64_are_left_to_torch() -> None:
    layer = nn.Linear(70, 130)
    use_onednn(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(3, 70)).dtype == torch.bfloat16
    assert layer.double()(torch.randn(3, 70, dtype=torch.float64)).dtype == torch.float64


def test_without_the_operators_layers_stay_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(70, 130)
    monkeypatch.setattr(onednn_linear, "product", lambda *_: (_ for _ in ()).throw(AttributeError("no such operator")))
    assert use_onednn(layer) == 0
    assert type(layer) is nn.Linear


def test_operators_that_mean_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "product", lambda x, weight, bias=None: 1.01 * (x @ weight.t()))
    assert not available()


def test_small_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "MIN_WEIGHTS", 65_536)
    assert use_onednn(random_llama()) == 0
