"""The engine against the reference: architectures, forks of every kind, memory that runs short, packed layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Olmo2Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from cft.annotation.counterfactual import ListSource
from cft.engines import attention as fork_attention
from cft.engines import scheduler as scheduler
from cft.engines.attention import Decode, LayerKeys, Shared
from cft.engines.factory import EngineError
from cft.engines.reference import ReferenceEngine
from cft.engines.shared_prefix import Row, SharedPrefixEngine
from cft.models.cpu.packed_linear import PackedLinears
from cft.models.load import Lora, apply_lora
from cft.types import GREEDY, Budget, Completion, Fork, Key, Sampling, TokenSequence
from tests.fakes import random_llama
from tests.precision import Measured, assert_as_exact_as_torch, assert_same, float64

EOS = (1, 2)
BUDGET = Budget(40)
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


def random_model(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def forks_of(sequences: int, *, seed: int = 0) -> list[Fork]:
    """Many forks of a few sequences, some of sequences of their own; greedy and sampled; with and without a first token."""
    rng = np.random.default_rng(seed)
    forks = []
    for i in range(sequences):
        sequence = TokenSequence(rng.integers(3, 60, int(rng.integers(1, 30))).astype(np.int32), 1)
        count = int(rng.integers(1, 25)) if i % 3 else 1
        for j in range(count):
            cut = int(rng.integers(1, len(sequence.ids) + 1))
            first = int(rng.integers(0, 60)) if j % 3 else None
            sampling = GREEDY if j % 4 else Sampling(1.0, 0.9 if j % 8 else 1.0, 7, f"{i} {j}")
            forks.append(Fork(sequence, cut, first, sampling, (i, j)))
    return forks


def run(engine: Any, forks: Sequence[Fork], *, budget: Budget = BUDGET) -> dict[Key, Completion]:
    found = list(engine.run(ListSource(forks), budget=budget))
    assert len({key for key, _ in found}) == len(found) == len(forks)
    return dict(found)


@cache
def _decoded_by_the_reference() -> dict[Key, Completion]:
    return run(ReferenceEngine(random_llama(), EOS), forks_of(7))


def of_llama() -> tuple[Any, list[Fork], dict[Key, Completion]]:
    """The model, its forks, and what the reference makes of them."""
    return random_llama(), forks_of(7), _decoded_by_the_reference()


def assert_equal(found: dict[Key, Completion], expected: dict[Key, Completion]) -> None:
    assert found.keys() == expected.keys()
    for key, completion in expected.items():
        np.testing.assert_array_equal(found[key].ids, completion.ids, err_msg=str(key))
        assert (found[key].finish, found[key].num_decoded) == (completion.finish, completion.num_decoded)


@pytest.mark.parametrize(
    "make",
    [
        random_llama,
        pytest.param(lambda: random_llama(num_key_value_heads=4, tie_word_embeddings=True), marks=pytest.mark.slow),
        pytest.param(lambda: random_model(Qwen2Config(**SMALL)), marks=pytest.mark.slow),
        pytest.param(lambda: random_model(Qwen3Config(**SMALL, head_dim=16)), marks=pytest.mark.slow),
        pytest.param(lambda: random_model(Olmo2Config(**SMALL)), marks=pytest.mark.slow),
    ],
    ids=["llama", "llama-tied-no-groups", "qwen2", "qwen3", "olmo2"],
)
def test_ids_equal_the_references(make: Callable[[], PreTrainedModel]) -> None:
    model, forks = make(), forks_of(7)
    expected = run(ReferenceEngine(model, EOS), forks)
    assert {c.finish for c in expected.values()} == {"stop", "length"}
    assert len({tuple(c.ids) for c in expected.values()}) > len(forks) / 2
    for max_rows in (8, 128):
        assert_equal(run(SharedPrefixEngine(model, EOS, max_rows=max_rows), forks), expected)


@pytest.mark.slow
def test_adapters_on_the_embeddings_change_nothing() -> None:
    model, forks = random_llama(tie_word_embeddings=True), forks_of(3)
    apply_lora(model, lora=Lora(r=4, target_modules=["q_proj", "embed_tokens"]))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)  # as after training
    model.eval()
    assert_equal(run(SharedPrefixEngine(model, EOS), forks), run(ReferenceEngine(model, EOS), forks))


@pytest.mark.parametrize("max_tails", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_joined_tails_are_what_they_were_apart(max_tails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, forks, expected = of_llama()
    monkeypatch.setattr(scheduler, "MAX_BLOCKS", max_tails)
    assert_equal(run(SharedPrefixEngine(model, EOS, max_rows=24), forks), expected)


def test_a_model_in_use_elsewhere_is_left_as_it_was() -> None:
    model = random_llama()
    ids = torch.arange(3, 20)[None]
    before = model(ids).logits
    run(SharedPrefixEngine(model, EOS), forks_of(3))
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, before)


def test_memory_beyond_the_budget_makes_forks_wait_and_changes_nothing() -> None:
    model, forks, expected = of_llama()
    engine = SharedPrefixEngine(model, EOS, max_rows=64)
    assert_equal(run(engine, forks), expected)
    assert engine.back_offs == 0
    engine.kv_budget_bytes = 100_000
    assert_equal(run(engine, forks), expected)
    assert engine.back_offs > 0


def test_little_is_decoded_in_vain_where_memory_is_short() -> None:
    """A budget of eight rows: under an eighth of the tokens, most of them before it is known; and half of the rows that fit."""
    rng = np.random.default_rng(0)
    sequence = TokenSequence(rng.integers(3, 60, 20).astype(np.int32), 4)
    forks = [Fork(sequence, 4 + i % 17, int(rng.integers(3, 60)), GREEDY, i) for i in range(60)]
    engine = SharedPrefixEngine(random_llama(), (), max_rows=64)
    bytes_a_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, float32
    engine.kv_budget_bytes = 8 * 45 * bytes_a_token
    decode, live = engine.next_logits, []

    def counted(rows: Sequence[Row], plan: Decode) -> torch.Tensor:
        live.append(len(rows))
        return decode(rows, plan)

    engine.next_logits = counted  # type: ignore[method-assign]
    found = run(engine, forks)
    total = sum(completion.num_decoded for completion in found.values())
    assert engine.back_offs > 0
    assert engine.lost_tokens < total / 8
    assert sum(live) == total + engine.lost_tokens
    assert total / len(live) > 4


@pytest.mark.slow
def test_a_block_leaves_behind_what_no_row_sees() -> None:
    """Rows come and go: the columns of those that left are not carried along."""
    model = random_llama()
    sequence = TokenSequence(np.arange(3, 23, dtype=np.int32), 4)
    forks = [Fork(sequence, 4 + i % 17, 3 + i % 50, GREEDY, i) for i in range(40)]
    engine = SharedPrefixEngine(model, (), max_rows=8)
    decode, columns = engine.next_logits, []

    def watched(rows: Sequence[Row], plan: Decode) -> torch.Tensor:
        columns.append(max(block.columns for block in plan.blocks))
        return decode(rows, plan)

    engine.next_logits = watched  # type: ignore[method-assign]
    assert_equal(run(engine, forks), run(ReferenceEngine(model, ()), forks))
    assert len(columns) > 3 * 40
    assert max(columns) < 40 + fork_attention.SPARE_COLUMNS


def test_memory_that_ends_while_tails_grow_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some layers then have more room than others."""
    model, forks, budget = random_llama(), forks_of(3), Budget(60)
    expected = run(ReferenceEngine(model, ()), forks, budget=budget)
    engine = SharedPrefixEngine(model, (), max_rows=64)
    widened, make_room = fork_attention._widened, fork_attention.KVBlock.make_room
    growing, grown, failed = [False], [0], [0]

    def grows(block: fork_attention.KVBlock[Row]) -> None:
        growing[0] = len(block) > 1
        try:
            make_room(block)
        finally:
            growing[0] = False

    def scarce(part: torch.Tensor, columns: int) -> torch.Tensor:
        if growing[0]:
            grown[0] += 1
            if grown[0] % 5 == 3:
                failed[0] += 1
                raise torch.OutOfMemoryError("full")
        return widened(part, columns)

    monkeypatch.setattr(fork_attention, "_widened", scarce)
    monkeypatch.setattr(fork_attention.KVBlock, "make_room", grows)
    assert_equal(run(engine, forks, budget=budget), expected)
    assert failed[0] > 0


@pytest.mark.numerics
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fused", "product by product"])
def test_attention_over_a_shared_prefix_equals_the_softmax_over_what_is_visible(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows, heads, groups, length, width = 7, 2, 3, 11, 16
    keys = LayerKeys(*(torch.randn(1, heads, length, width, dtype=dtype) for _ in range(2)))
    query = torch.randn(rows, heads, groups, width, dtype=dtype)
    visible = [1, 9, 4, 4, 2, 9, 8]

    def softmaxes(kind: torch.dtype) -> Measured:
        outs, sums = [], []
        for row, seen in enumerate(visible):
            k, v = (part[0, :, :seen].to(kind) for part in (keys.k, keys.v))
            scores = query[row].to(kind) @ k.mT
            outs.append(scores.softmax(-1) @ v)
            sums.append(scores.logsumexp(-1, keepdim=True))
        return torch.stack(outs), torch.stack(sums)

    found = Shared.of([keys], index=list(range(rows)), visible=visible).attend(0, query)
    if dtype == torch.float64:
        for one, other in zip(found, softmaxes(torch.float64), strict=True):
            assert_same(one, other)
    else:
        assert_as_exact_as_torch(found, softmaxes(torch.float32), softmaxes(torch.float64))


SOFT_CAPPED: dict[str, Any] = {
    "head_dim": 8,
    "attn_logit_softcapping": 0.5,
    "query_pre_attn_scalar": 8,
    "layer_types": ["full_attention", "full_attention"],
}


class Full:
    """A model whose forward pass fails as a full device does, where `when(ids)` says so."""

    def __init__(self, model: PreTrainedModel, when: Callable[[torch.Tensor], bool], error: Exception) -> None:
        self._forward, self._when, self._error, self.failed = model.forward, when, error, 0
        model.forward = self  # type: ignore[method-assign]

    def __call__(self, input_ids: torch.Tensor, **options: Any) -> Any:
        if "forks" in options and self._when(input_ids):
            self.failed += 1
            raise self._error
        return self._forward(input_ids, **options)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(torch.OutOfMemoryError("CUDA out of memory"), marks=pytest.mark.slow),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 12 bytes"),
    ],
    ids=["accelerator", "cpu"],
)
def test_out_of_memory_halves_the_batch_and_goes_on(error: Exception) -> None:
    model, forks, expected = of_llama()
    engine = SharedPrefixEngine(model, EOS, max_rows=64)
    full = Full(model, lambda ids: ids.shape[0] > 5, error)
    assert_equal(run(engine, forks), expected)
    assert full.failed > 0


def test_a_fork_that_does_not_fit_alone_is_given_up_and_the_others_go_on() -> None:
    model, forks, expected = of_llama()
    engine = SharedPrefixEngine(model, EOS, max_rows=64)
    victim = next(f for f in forks if f.first_token is not None and len(expected[f.key].ids) > f.prefix_len + 3)
    poison = int(expected[victim.key].ids[victim.prefix_len + 1])
    Full(model, lambda ids: ids.shape[1] == 1 and poison in ids.flatten().tolist(), torch.OutOfMemoryError("full"))
    found = run(engine, forks)
    lost = {key for key, completion in found.items() if completion.finish == "memory"}
    assert victim.key in lost
    assert len(lost) < len(forks)
    assert_equal(
        {k: c for k, c in found.items() if k not in lost}, {k: c for k, c in expected.items() if k not in lost}
    )


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    model, forks = random_llama(), forks_of(3)
    engine = SharedPrefixEngine(model, EOS)
    Full(model, lambda ids: True, RuntimeError("device-side assert"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        run(engine, forks)


def test_a_source_that_has_seen_enough_ends_a_fork() -> None:
    class Impatient(ListSource):
        def decided(self, key: Key, ids: Sequence[int]) -> bool:
            return ids[-1] % 7 == 3

    model, forks, whole = of_llama()
    for engine in (ReferenceEngine(model, EOS), SharedPrefixEngine(model, EOS)):
        found = dict(engine.run(Impatient(forks), budget=BUDGET))
        for key, completion in whole.items():
            decoded = completion.ids[len(completion.ids) - completion.num_decoded :].tolist()
            end = next((i + 1 for i, token in enumerate(decoded) if token % 7 == 3), len(decoded))
            assert found[key].num_decoded == end
            np.testing.assert_array_equal(found[key].ids, completion.ids[: len(completion.ids) - len(decoded) + end])
            if end < len(decoded):
                assert found[key].finish == "decided"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Gemma2Config(**SMALL, **SOFT_CAPPED), "soft-capping"),
        (BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4), "Bloom"),
    ],
    ids=["soft-capped scores", "attention of its own"],
)
def test_attention_of_another_kind_is_refused(config: Any, reason: str) -> None:
    with pytest.raises(EngineError, match=f"{reason}.*engine=reference"):
        SharedPrefixEngine(random_model(config), EOS)


@pytest.mark.numerics
def test_packed_layers_compute_the_same_and_leave_no_trace() -> None:
    model = random_llama(attention_bias=True)
    packed = PackedLinears(model)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        plain = model(ids).logits
        with packed.active():
            fast = model(ids).logits
            replaced = sum("forward" in vars(m) for m in model.modules())
        assert torch.equal(model(ids).logits, plain)
    with float64(), torch.inference_mode():
        exact = model.double()(ids).logits
    assert_as_exact_as_torch((fast,), (plain,), (exact,))
    if torch.backends.mkldnn.is_available():
        assert len(packed) == replaced == sum(isinstance(m, torch.nn.Linear) for m in model.modules())
    assert len(PackedLinears(random_llama().bfloat16())) == 0
