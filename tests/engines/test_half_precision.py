"""What half precision and a GPU change of an engine: ties, ranks, attention, memory for keys, the device of a shard."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cft.annotation.counterfactual import ListSource
from cft.engines.reference import ReferenceEngine
from cft.engines.sampling import tie_margin_for
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.errors import BadValue
from cft.models import device as devices
from cft.models.attention import usable_attention, uses_flash
from cft.models.device import DeviceError, chosen_device, memory_for_keys
from cft.models.head import project, project_exactly
from cft.types import GREEDY, Budget, Fork, TokenSequence
from experiments.gpu.attention import errors
from tests.fakes import random_llama


@pytest.mark.parametrize(
    ("dtype", "asked", "margin"),
    [(torch.float32, None, 1e-3), (torch.float32, 0.01, 0.01), (torch.bfloat16, None, 0.0), (torch.float16, 0.0, 0.0)],
)
def test_ties_are_settled_in_float32_alone(dtype: torch.dtype, asked: float | None, margin: float) -> None:
    assert tie_margin_for(dtype, asked) == margin


def test_a_tie_margin_in_half_precision_is_refused() -> None:
    model = random_llama().to(torch.bfloat16)
    for kind in (ReferenceEngine, SharedPrefixEngine):
        with pytest.raises(BadValue, match=r"engine\.tie_margin=0\.001.*expected null or 0 with model\.dtype=bfloat16"):
            kind(model, (1,), tie_margin=1e-3)
        assert kind(model, (1,)).tie_margin == 0


@pytest.mark.parametrize("magnitude", [5.0, 40.0])
def test_forks_attend_in_bfloat16_as_exactly_as_sdpa(magnitude: float) -> None:
    found = errors(magnitude, device=torch.device("cpu"), prefix=100, tail=30)
    assert found["forks"] < 1.5 * found["sdpa"] < found["scores in bfloat16"]


def test_alternatives_in_bfloat16_are_ranked_by_unrounded_logits() -> None:
    """Rounded logits have equal values among the best, which the order of ids would rank."""
    model = random_llama(vocab=2000, spread=0.05).to(torch.bfloat16)
    states = model.base_model(torch.arange(3, 43)[None], use_cache=False).last_hidden_state[0]
    exact = states.double() @ model.lm_head.weight.double().t()
    torch.testing.assert_close(project_exactly(model, states).double(), exact, rtol=0, atol=1e-5)
    rounded = project(model, states).double()
    assert (rounded.topk(4).indices != exact.topk(4).indices).any()
    sequence = TokenSequence(np.arange(3, 43, dtype=np.int32), 1)
    found = ReferenceEngine(model, (1,)).score(sequence, k=4)
    np.testing.assert_array_equal(found.top_ids_RK, exact[:-1].topk(4).indices.numpy())


def test_flash_attention_steps_aside_where_it_cannot_work() -> None:
    """float32 masters and CPUs: engines are built and asked before mixed training puts the model on its device."""
    model, forks = random_llama(), [Fork(TokenSequence(np.arange(3, 20, dtype=np.int32), 1), 9, 4, GREEDY, 0)]
    expected = dict(SharedPrefixEngine(model, (1,)).run(ListSource(forks), budget=Budget(30)))
    model.config._attn_implementation = "flash_attention_2"
    for kind in (ReferenceEngine, SharedPrefixEngine):
        found = dict(kind(model, (1,)).run(ListSource(forks), budget=Budget(30)))
        np.testing.assert_array_equal(found[0].ids, expected[0].ids)
    ReferenceEngine(model, (1,)).score(forks[0].sequence, k=2)
    assert uses_flash(model)
    with usable_attention(model):
        assert not uses_flash(model)
    assert uses_flash(model)


@pytest.mark.slow
def test_the_batch_grows_again_after_memory_ran_short() -> None:
    """Long prefixes first: rows are evicted. Then short ones, for which there is room."""
    rng = np.random.default_rng(0)

    def forks(count: int, length: int, start: int) -> list[Fork]:
        sequences = [TokenSequence(rng.integers(3, 60, length).astype(np.int32), length) for _ in range(count)]
        return [Fork(sequence, length, None, GREEDY, start + i) for i, sequence in enumerate(sequences)]

    engine = SharedPrefixEngine(random_llama(), (), max_rows=32, tie_margin=0.0)
    seen: list[int] = []
    compute = engine.next_logits

    def watched(rows: Any, plan: Any) -> torch.Tensor:
        seen.append(len(rows))
        return compute(rows, plan)

    engine.next_logits = watched  # type: ignore[method-assign]
    engine.kv_budget_bytes = 32 * 2 * 2 * 2 * 8 * 4 * 90  # 32 rows of 90 tokens
    work = [*forks(32, 120, 0), *forks(200, 4, 100)]
    found = dict(engine.run(ListSource(work), budget=Budget(40)))
    assert len(found) == len(work)
    assert engine.back_offs > 0
    least = min(seen[: len(seen) // 2])
    assert least < 20
    assert max(seen[-len(seen) // 3 :]) >= 1.5 * least


class FakeCuda:
    """torch.cuda with so many devices, of which the second is the current one."""

    def __init__(self, count: int) -> None:
        self.count = count

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(torch.cuda, "is_available", lambda: self.count > 0)
        patch.setattr(torch.cuda, "device_count", lambda: self.count)
        patch.setattr(torch.cuda, "current_device", lambda: min(1, self.count - 1))
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * 10**9, 80 * 10**9))


def test_each_shard_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(4).install(monkeypatch)
    assert [chosen_device("auto", shard=s, num_shards=6) for s in range(6)] == [f"cuda:{s}" for s in (0, 1, 2, 3, 0, 1)]
    assert chosen_device("auto") == chosen_device("cuda", shard=3, num_shards=6) == "cuda:1"
    assert (chosen_device("cuda:3", shard=1, num_shards=6), chosen_device("cpu")) == ("cuda:3", "cpu")
    with pytest.raises(DeviceError, match=r"device=cuda:4: torch sees 4 CUDA devices, cuda:0 to cuda:3"):
        chosen_device("cuda:4")
    with pytest.raises(DeviceError, match=r"device=gpu: expected auto, cpu, cuda, or a numbered device such as cuda:1"):
        chosen_device("gpu")


def test_without_a_gpu_auto_is_the_cpu_and_cuda_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(0).install(monkeypatch)
    assert chosen_device("auto", shard=1, num_shards=2) == "cpu"
    for asked in ("cuda", "cuda:0"):
        with pytest.raises(DeviceError, match="torch sees no CUDA device"):
            chosen_device(asked)


def test_memory_for_keys_is_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(1).install(monkeypatch)
    assert memory_for_keys(torch.device("cuda", 0), megabytes=None) == 45 * 10**9
    assert memory_for_keys(torch.device("cuda", 0), megabytes=100) == 100 * 10**6
    assert memory_for_keys(torch.device("cpu"), megabytes=None) == 4096 * 10**6


def test_tensor_float_32_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    torch.set_float32_matmul_precision("high")
    devices.place(random_llama(), device="cpu")
    assert torch.get_float32_matmul_precision() == "highest"
    assert "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE" not in devices.os.environ


def test_attention_makes_no_plan_for_every_length() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    devices.place(random_llama(), device="cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
