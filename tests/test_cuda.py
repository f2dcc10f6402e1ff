"""On a GPU what the CPU computes: ids, scores, training steps.   python -m pytest -m gpu tests/test_cuda.py

CFT_TEST_DEVICE names another device than cuda; with cpu the tests compare the CPU with itself, which tries the tests.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo2Config, PreTrainedModel, Qwen2Config, Qwen3Config

from cft.annotation.counterfactual import ListSource
from cft.engines.reference import ReferenceEngine
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.models.device import place
from cft.models.fused_head import has_fused_head
from cft.models.kernels import prepare_for_training
from cft.training.layout import Layout
from cft.training.selective_lm import SelectiveLM
from cft.types import GREEDY, Budget, Completion, Fork, Key, Sampling, TokenSequence
from experiments.gpu.attention import errors
from tests.fakes import random_llama
from tests.methods import VOCABULARY, batch_of, objective, token_rows

DEVICE = os.environ.get("CFT_TEST_DEVICE", "cuda")
HERE = DEVICE != "cuda" or torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="no CUDA device")]
EOS, BUDGET = (1, 2), Budget(48)
STEP_TOLERANCE = 1e-4  # relative, of a loss and of a gradient norm in float32
SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
    "pad_token_id": 0,
}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": random_llama,
    "llama-tied-no-groups": lambda: random_llama(num_key_value_heads=4, tie_word_embeddings=True),
    "qwen2": lambda: _random(Qwen2Config(**SMALL)),
    "qwen3": lambda: _random(Qwen3Config(**SMALL, head_dim=16)),
    "olmo2": lambda: _random(Olmo2Config(**SMALL)),
}
METHODS = (
    "weighting=uniform",
    "weighting=probability",
    "weighting=propagation",
    "loss=gem",
    "loss=power",
    "loss=psft",
    "loss=sft_go",
    "regularizer=entropy_bonus",
)


@pytest.fixture(autouse=True)
def memory_given_back() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _random(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def on_device(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model where the tests run, as the stages put it there."""
    moved = copy.deepcopy(model)
    place(moved, device=DEVICE)  # type: ignore[arg-type]
    return moved


def forks_of(count: int, *, seed: int = 0, vocabulary: int = 60) -> list[Fork]:
    """Forks of a few sequences, some alone on theirs; three of four greedy; with and without a first token."""
    rng = np.random.default_rng(seed)
    forks: list[Fork] = []
    while len(forks) < count:
        sequence = TokenSequence(rng.integers(3, vocabulary, int(rng.integers(2, 40))).astype(np.int32), 1)
        for j in range(int(rng.integers(1, 30)) if len(forks) % 3 else 1):
            cut = int(rng.integers(1, len(sequence.ids) + 1))
            first = int(rng.integers(3, vocabulary)) if j % 3 else None
            sampling = GREEDY if j % 4 else Sampling(1.0, 0.9 if j % 8 else 1.0, 7, f"{len(forks)}")
            forks.append(Fork(sequence, cut, first, sampling, len(forks)))
    return forks[:count]


def run(engine: Any, forks: Sequence[Fork], *, budget: Budget = BUDGET) -> dict[Key, Completion]:
    return dict(engine.run(ListSource(forks), budget=budget))


def assert_same_ids(found: dict[Key, Completion], expected: dict[Key, Completion]) -> None:
    assert found.keys() == expected.keys()
    for key, completion in expected.items():
        np.testing.assert_array_equal(found[key].ids, completion.ids, err_msg=str(key))
        assert found[key].finish == completion.finish


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_and_sampled_ids_of_200_forks_equal_the_cpus(kind: str) -> None:
    model, forks = MODELS[kind](), forks_of(200)
    assert {fork.sampling.temperature for fork in forks} == {0.0, 1.0}
    expected = run(SharedPrefixEngine(model, EOS), forks)
    assert_same_ids(run(SharedPrefixEngine(on_device(model), EOS), forks), expected)


def test_the_reference_engine_decodes_the_cpus_ids() -> None:
    model, forks = random_llama(), forks_of(24, seed=3)
    assert_same_ids(run(ReferenceEngine(on_device(model), EOS), forks), run(ReferenceEngine(model, EOS), forks))


def test_a_full_cache_changes_no_id() -> None:
    """Evicted forks are decoded again on the device."""
    model, forks = random_llama(), forks_of(120, seed=1)
    engine = SharedPrefixEngine(on_device(model), EOS, kv_budget_mb=1)
    engine.kv_budget_bytes = 300_000
    assert_same_ids(run(engine, forks), run(SharedPrefixEngine(model, EOS), forks))
    assert engine.back_offs > 0


def test_scores_equal_the_cpus() -> None:
    model = random_llama()
    there = on_device(model)
    for fork in forks_of(12, seed=5):
        sequence = TokenSequence(np.concatenate([fork.sequence.ids, [7, 11]]).astype(np.int32), 1)
        found, expected = (ReferenceEngine(m, EOS).score(sequence, k=4) for m in (there, model))
        np.testing.assert_allclose(found.logprob_R, expected.logprob_R, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.entropy_R, expected.entropy_R, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found.top_ids_RK, expected.top_ids_RK)


def step(
    model: PreTrainedModel, method: str, *, layout: Layout, mixed: bool = False, fused_loss: bool = False
) -> tuple[float, float, float]:
    """Loss, gradient norm, and the loss without gradient of one batch."""
    lm = SelectiveLM(model, objective(method), layout=layout, fused_loss=fused_loss)
    lm.check_head()
    lm.check_layout()
    rows = token_rows()
    batch = batch_of(rows).to(model.device)
    model.train()
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=mixed):
        loss = torch.stack([term.mean(batch.step_counts) for term in lm(batch)]).sum()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    model.eval()
    with torch.no_grad():
        probe = lm.probe(batch)
    return float(loss.detach()), float(norm), float(probe.sum())


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_equals_the_cpus(method: str, layout: Layout) -> None:
    model = random_llama(vocab=VOCABULARY)
    expected = step(copy.deepcopy(model), method, layout=layout)
    assert step(on_device(model), method, layout=layout) == pytest.approx(expected, rel=STEP_TOLERANCE)


@pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="this torch has no fused loss")
@pytest.mark.parametrize("method", ["weighting=uniform", "weighting=probability", "loss=power", "loss=psft"])
def test_the_librarys_fused_loss_equals_the_cpus_step(method: str) -> None:
    model = random_llama(vocab=VOCABULARY)
    expected = step(copy.deepcopy(model), method, layout="packed")
    there = on_device(model)
    assert has_fused_head(there, torch.zeros(3, there.config.hidden_size, device=DEVICE))
    assert step(there, method, layout="packed", fused_loss=True) == pytest.approx(expected, rel=STEP_TOLERANCE)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "olmo2"])
def test_packed_rows_train_as_padded_ones(kind: str) -> None:
    padded, packed = (step(on_device(MODELS[kind]()), "weighting=uniform", layout=at) for at in ("padded", "packed"))
    assert packed == pytest.approx(padded, rel=STEP_TOLERANCE)


def test_kernels_and_checkpointing_leave_a_step_as_it_is() -> None:
    model = random_llama(vocab=VOCABULARY)
    expected = step(on_device(model), "weighting=uniform", layout="packed")
    other = copy.deepcopy(model)
    prepare_for_training(other, kernels="auto")
    other.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    place(other, device=DEVICE)  # type: ignore[arg-type]
    assert step(other, "weighting=uniform", layout="packed") == pytest.approx(expected, rel=STEP_TOLERANCE)


def test_mixed_precision_is_near_float32() -> None:
    model = random_llama(vocab=VOCABULARY, spread=0.1)
    expected = step(on_device(model), "weighting=uniform", layout="packed")
    found = step(on_device(model), "weighting=uniform", layout="packed", mixed=True)
    assert found == pytest.approx(expected, rel=0.03)
    assert found != expected


def test_float32_products_are_float32() -> None:
    """TensorFloat-32 keeps 10 bits: its products are off by 1e-4 and more."""
    place(random_llama(), device=DEVICE)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    found = (a.to(DEVICE) @ b.to(DEVICE)).cpu().double()
    wanted = a.double() @ b.double()
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-6


@pytest.mark.parametrize("magnitude", [5.0, 40.0])
def test_bfloat16_forks_attend_as_exactly_as_sdpa(magnitude: float) -> None:
    """Scores and their log-sum-exp in float32; at bfloat16 they would be off by 0.01 to 0.02."""
    found = errors(magnitude, device=torch.device(DEVICE))
    assert found["forks"] < 1.5 * found["sdpa"] < found["scores in bfloat16"]
