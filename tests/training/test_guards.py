"""Nothing that is not finite reaches the weights; what memory a step needs is known before it, and said when it runs out."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from itertools import combinations
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cft.models.cpu import onednn_linear
from cft.models.kernels import prepare_for_training
from cft.models.load import Lora, apply_lora
from cft.training.callbacks.guards import REPORT, Guards, OutOfMemory, TrainingDiverged, gradient_norm, memory_advice
from cft.training.checkpointing.checkpoints import CHECKPOINTS, kept_checkpoints, newest_checkpoint, read_checkpoint
from cft.training.memory import (
    DoesNotFit,
    MemoryEstimate,
    activation_bytes,
    estimate,
    largest_micro_batch,
    require_room,
    states_per_parameter,
)
from tests.entry import FIT_ONLY
from tests.entry import run as train_py
from tests.fakes import exact_llama, random_llama
from tests.precision import assert_same
from tests.scale_driver import ADAMW, run

STEP = 5


class Spoil(pl.Callback):
    """Makes the loss of one micro-batch, or one entry of the gradient, not finite; keeps the weights from before."""

    def __init__(self, *, where: str, value: float) -> None:
        self.where, self.value = where, value
        self.module: Any = None
        self.before: list[torch.Tensor] = []
        self.rows: list[str] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == STEP:
            self.module = module
            self.before = self.before or [p.detach().clone() for p in module.parameters()]
            self.rows += batch.row_ids

    def on_after_backward(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.global_step == STEP and self.where == "gradient" and len(self.rows) == 8:
            module.lm.model.model.layers[1].mlp.up_proj.weight.grad[0, 0] = self.value

    def on_before_backward(self, trainer: pl.Trainer, module: Any, loss: torch.Tensor) -> None:
        if trainer.global_step == STEP and self.where == "loss" and len(self.rows) == 4:
            loss.data.fill_(self.value)
            module._window[0, 0] = self.value


@pytest.mark.parametrize(
    ("where", "value"), [("loss", float("nan")), ("loss", float("inf")), ("gradient", float("nan"))]
)
def test_a_step_that_is_not_finite_stops_before_the_optimizer_moves(tmp_path: Path, where: str, value: float) -> None:
    spoil = Spoil(where=where, value=value)
    with pytest.raises(TrainingDiverged, match=f"step {STEP}: the .*{value}.*{REPORT}") as caught:
        run(tmp_path, strategy="auto", world=1, accumulate=4, batch=2, every=2, more=(spoil, Guards(tmp_path)))
    for found, expected in zip(spoil.module.parameters(), spoil.before, strict=True):
        assert torch.equal(found, expected)
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["step"] == STEP
    assert [row for micro in report["micro_batches"] for row in micro["row_ids"]] == spoil.rows
    assert len(spoil.rows) == 8
    spoiled = [micro["row_ids"] for micro in report["micro_batches"] if not micro["finite"]]
    assert spoiled == ([spoil.rows[2:4]] if where == "loss" else [])
    names = report["parameters_with_a_gradient_that_is_not_finite"]
    assert names == ([] if where == "loss" else ["lm.model.model.layers.1.mlp.up_proj.weight"])
    assert ("up_proj" in str(caught.value)) == (where == "gradient")
    state = read_checkpoint(newest_checkpoint(tmp_path))
    assert state["global_step"] == 4
    assert all(torch.isfinite(t).all() for t in state["state_dict"].values())


@pytest.mark.parametrize(
    ("step", "advice"), [(0, "model's weights"), (1, "lower optimizer.lr (now 0.5) or raise schedule")]
)
def test_the_advice_is_to_change_what_would_have_helped(step: int, advice: str) -> None:
    text = str(TrainingDiverged("the loss is nan", step=step, learning_rate=0.5))
    assert advice in text
    assert "gradient_clip_val" not in text


@pytest.mark.numerics
@pytest.mark.usefixtures("in_float64")
def test_the_norm_is_that_of_all_gradients_and_clips_as_torch_does() -> None:
    model = exact_llama()
    ids = torch.arange(3, 23)[None]
    (model(input_ids=ids).logits ** 2).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double().norm()
    assert_same(gradient_norm(model.parameters()), expected)


def test_clipping_limits_the_norm_of_the_gradient(tmp_path: Path) -> None:
    norms: list[tuple[float, float]] = []

    class Norms(pl.Callback):
        def on_before_zero_grad(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
            if module._norm is not None and any(p.grad is not None for p in module.parameters()):
                norms.append((float(module._norm), float(gradient_norm(module.parameters()))))

    run(tmp_path, strategy="auto", world=1, accumulate=4, batch=2, more=(Norms(),))
    assert any(before > 1 for before, _ in norms)
    for before, after in norms:
        assert after == pytest.approx(min(before, 1.0), rel=1e-4)  # torch adds 1e-6 to the norm it divides by


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
        (DoesNotFit("a step needs 3 GB, not enough memory"), False),
    ],
)
def test_memory_that_ran_out_gets_advice_and_other_errors_do_not(error: BaseException, is_memory: bool) -> None:
    advice = memory_advice(error)
    assert (advice is not None) == is_memory
    if advice is not None:
        assert isinstance(advice, OutOfMemory)
        for key in ("data.batch_size", "model.gradient_checkpointing", "trainer=fsdp", "loss.chunk_tokens"):
            assert key in str(advice)


def kept_for_backward(call: Callable[[], object], *, beside: Collection[int]) -> int:
    """Bytes that a forward pass keeps for its backward pass, each storage once, but for those at the places `beside`."""
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive.append(call())
    return sum(size for place, size in sizes.items() if place not in beside)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_estimated_from_a_few_tokens(checkpointing: bool, mixed: bool) -> None:
    """Autocast keeps copies of weights, of one size for any number of tokens: no part of what a token needs."""
    model = random_llama(hidden_size=64, intermediate_size=256, num_hidden_layers=3)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = [activation_bytes(model, tokens=tokens, mixed=mixed) for tokens in (40, 800)]
    model.train()
    for tokens, found in zip((40, 800), sizes, strict=True):
        ids = torch.zeros(4, tokens // 4, dtype=torch.long)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            kept = kept_for_backward(lambda ids=ids: model.base_model(input_ids=ids), beside=weights)
        assert found == pytest.approx(kept, rel=0.1)
    assert activation_bytes(model, tokens=800, mixed=mixed) == sizes[1]  # nothing is left behind by measuring


def test_activations_are_estimated_under_the_kernels_that_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their products come in few numbers of rows: measured over others, a few tokens would seem to need those of more."""
    monkeypatch.setattr(onednn_linear, "MIN_WEIGHTS", 0)
    model = random_llama(hidden_size=64, intermediate_size=256, num_hidden_layers=3)
    prepare_for_training(model, kernels="auto")
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = activation_bytes(model, tokens=800, mixed=False)
    model.train()
    ids = torch.zeros(1, 800, dtype=torch.long)
    assert found == pytest.approx(kept_for_backward(lambda: model.base_model(input_ids=ids), beside=weights), rel=0.1)


def test_mixed_precision_needs_no_more_memory_for_activations() -> None:
    """Of a model whose weights are many times the activations of the tokens that are measured."""
    model = random_llama(hidden_size=256, intermediate_size=512, num_hidden_layers=2)
    copies = sum(p.numel() * 2 for p in model.parameters())
    full, mixed = (activation_bytes(model, tokens=4000, mixed=on) for on in (False, True))
    assert copies > activation_bytes(model, tokens=16, mixed=False)
    assert mixed < full + copies


@given(st.lists(st.integers(2, 99), min_size=1, max_size=9), st.integers(1, 12), st.booleans())
def test_a_micro_batch_has_no_more_tokens_than_the_longest_rows(
    lengths: list[int], batch_size: int, padded: bool
) -> None:
    parts = [part for n in range(1, min(batch_size, len(lengths)) + 1) for part in combinations(lengths, n)]
    expected = max(len(part) * max(part) if padded else sum(part) for part in parts)
    assert largest_micro_batch(lengths, batch_size=batch_size, padded=padded) == expected


def test_an_estimate_counts_what_is_trained_and_shares_it_out() -> None:
    model = random_llama()
    weights = sum(p.numel() * 4 for p in model.parameters())
    options = {"states_per_parameter": 2, "tokens": 100, "chunk_tokens": 64, "mixed": False}
    full = estimate(model, shards=1, **options)  # type: ignore[arg-type]
    assert (full.weights, full.gradients, full.optimizer) == (weights, weights, 2 * weights)
    assert full.logits == 3 * 64 * 60 * 4
    halves = estimate(model, shards=2, **options)  # type: ignore[arg-type]
    assert (halves.weights, halves.optimizer) == (weights // 2, weights)
    apply_lora(model, lora=Lora(r=2))
    adapters = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert estimate(model, shards=1, **options).gradients == adapters  # type: ignore[arg-type]
    assert states_per_parameter(ADAMW) == 2


def test_only_what_clearly_does_not_fit_is_refused() -> None:
    found = MemoryEstimate(int(4e9), int(4e9), int(8e9), int(3e9), int(1e9))
    require_room(found, memory=int(17e9))
    with pytest.raises(
        DoesNotFit, match=r"needs about 20\.0 GB .*activations 3\.0 GB.* the device has 8\.0 GB.*batch_size"
    ):
        require_room(found, memory=int(8e9))


@pytest.mark.parametrize("kind", ["not finite", pytest.param("out of memory", marks=pytest.mark.slow)])
def test_the_command_line_says_what_stopped_it(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cft.training.module import CausalLMModule

    step = CausalLMModule.training_step

    def spoiled(module: CausalLMModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if module.global_step == 2 and kind == "out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
        return step(module, batch, batch_idx) * (float("nan") if module.global_step == 2 else 1.0)

    monkeypatch.setattr(CausalLMModule, "training_step", spoiled)
    monkeypatch.chdir(tmp_path)
    few = ("data.max_rows=10", "data.batch_size=1", "callbacks.last.every_n_steps=1", "hydra.run.dir=run")
    ended = train_py("train", *FIT_ONLY, *few)
    assert ended.status == 2
    assert "Traceback" not in ended.text
    assert state_steps(tmp_path / "run") == [2, 1]
    assert not (tmp_path / "run" / "results.json").exists()
    if kind == "not finite":
        assert "step 2: the gradient's norm is nan" in ended.text
        assert json.loads((tmp_path / "run" / REPORT).read_text())["step"] == 2
    else:
        assert "memory ran out (CUDA out of memory" in ended.text
        assert "halve data.batch_size" in ended.text


def state_steps(folder: Path) -> list[int]:
    return [read_checkpoint(path)["global_step"] for path in kept_checkpoints(folder / CHECKPOINTS)]
