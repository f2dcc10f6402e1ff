"""Layers that keep less for the backward pass: the same value and gradients, in every way that a model is used."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from cft.models.cpu import onednn_linear, recomputed_layers
from cft.models.cpu.recomputed_layers import use_recomputed_layers
from cft.models.kernels import Used, prepare_for_training
from cft.training.selective_lm import SelectiveLM
from tests.architectures import gradients, model_of, uneven
from tests.fakes import exact_llama, random_llama
from tests.objectives import sft
from tests.precision import Measured, assert_as_exact_as_torch, float64

pytestmark = pytest.mark.numerics


@pytest.fixture(params=["torch", "onednn"], autouse=True)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With torch's products and, where the machine has them, with oneDNN's: two forms of the gated layer."""
    monkeypatch.setattr(onednn_linear, "MIN_WEIGHTS", 0)
    if request.param == "torch":
        monkeypatch.setattr(onednn_linear, "available", lambda: False)
    return request.param


# Layers: 2 gated and 2 * 2 + 1 norms, and two more norms a block where queries and keys are normed.
CHANGED = {"llama": 7, "qwen2": 7, "qwen3": 11, "mistral": 7, "olmo2": 11, "gemma": 0, "phi3": 5, "gpt2": 0}


def measured(model: Any) -> Measured:
    """Loss and gradient of a training step."""
    (term,) = SelectiveLM(model.train(), sft(), layout="packed")(uneven())
    term.sum.backward()
    return term.sum.detach(), gradients(model)


def with_uneven_norms(kind: str) -> Any:
    model = model_of(kind)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # ones at first, which would hide a weight left out
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return model


@cache
def torchs_and_exact(kind: str) -> tuple[Measured, Measured]:
    """Without our kernels, in float32 and in float64."""
    torchs = measured(with_uneven_norms(kind))
    with float64():
        return torchs, measured(with_uneven_norms(kind).double())


# Layers computed again go through the same forms in every kind of model.
@pytest.mark.parametrize(
    ("kind", "checkpointing"), [*((kind, False) for kind in CHANGED), ("llama", True), ("gemma", True)]
)
def test_value_and_gradient_stay(kind: str, checkpointing: bool) -> None:
    """Gemma's gelu and its norm of 1 + weight have the same parts, and must not be taken for the others'."""
    model = with_uneven_norms(kind)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert prepare_for_training(model, kernels="auto").recomputed_layers == CHANGED[kind]
    assert_as_exact_as_torch(measured(model), *torchs_and_exact(kind))


def saved_bytes(model: nn.Module) -> int:
    """Of all tensors that a forward pass keeps for the backward pass, each storage once, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = SelectiveLM(model, sft(), layout="packed")(uneven())  # type: ignore[arg-type]
    assert result
    return sum(kept.values())


def test_less_is_kept() -> None:
    model = random_llama().train()
    before = saved_bytes(model)
    prepare_for_training(model, kernels="auto")
    assert saved_bytes(model) < 0.8 * before


def test_inference_mode_keeps_the_models_bits() -> None:
    model, ids = random_llama(), torch.arange(1, 30)[None]
    with torch.inference_mode():
        before = model(ids).logits
        prepare_for_training(model, kernels="auto")
        assert torch.equal(model(ids).logits, before)


def test_validation_in_inference_mode_takes_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = random_llama(), []
    prepare_for_training(model, kernels="auto")
    monkeypatch.setattr(recomputed_layers._RmsNorm, "forward", _counting(recomputed_layers._RmsNorm.forward, calls))
    with torch.inference_mode():
        model(torch.arange(1, 9)[None])
        assert calls == []
        SelectiveLM(model, sft(), layout="packed")(uneven())
        assert len(calls) == 5


def _counting(inner: Any, calls: list[bool]) -> Any:
    def forward(*args: Any) -> Any:
        calls.append(True)
        return inner(*args)

    return staticmethod(forward)


def test_a_copy_computes_with_its_own_weights() -> None:
    model = random_llama()
    use_recomputed_layers(model)
    frozen = copy.deepcopy(model)
    x = torch.randn(3, 32)
    before = frozen.model.layers[0].mlp(x), frozen.model.norm(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(frozen.model.layers[0].mlp(x), before[0])
    assert torch.equal(frozen.model.norm(x), before[1])


def test_hooks_on_the_layers_inside_still_run() -> None:
    model, seen = random_llama(), []
    prepare_for_training(model, kernels="auto")
    down: Any = model.model.layers[0].mlp.down_proj
    down.register_forward_hook(lambda *_: seen.append(True))
    model.model.layers[0].mlp(torch.randn(3, 32))
    assert seen == [True]


def test_a_hook_may_change_what_a_norm_gives_in_place() -> None:
    """The layers behind it read the changed values, and must not make those before the change again."""

    def hooked(model: Any) -> Any:
        for block in model.model.layers:
            block.input_layernorm.register_forward_hook(lambda module, args, output: output.mul_(0.5))
        return model

    model = hooked(model_of("llama"))
    prepare_for_training(model, kernels="auto")
    torchs = measured(hooked(model_of("llama")))
    with float64():
        exact = measured(hooked(model_of("llama").double()))
    assert_as_exact_as_torch(measured(model), torchs, exact)


def test_kernels_torch_changes_nothing() -> None:
    model = random_llama()
    assert prepare_for_training(model, kernels="torch") == Used()
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.slow
def test_compiled_blocks_train_alike_and_leave_engines_alone(products: str) -> None:
    if products == "onednn":
        pytest.skip("compiled blocks use torch's products")
    found, ids = [], torch.arange(1, 30)[None]
    for kernels in ("torch", "compiled"):
        model = random_llama().train()
        with torch.inference_mode():
            before = model(ids).logits
        assert prepare_for_training(model, kernels=kernels).compiled_blocks == (2 if kernels == "compiled" else 0)
        found.append(measured(model))
        with torch.inference_mode():
            assert torch.equal(model(ids).logits, before)
    with float64():
        exact = measured(exact_llama())
    assert_as_exact_as_torch(found[1], found[0], exact)
