"""Decoding forks of a random 7B with the shared-prefix engine and with transformers' continuous batching."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, Qwen2Config

from cft.annotation.counterfactual import ListSource
from cft.engines.reference import fork_prefix
from cft.engines.sampling import choose
from cft.engines.scheduler import Scheduler
from cft.engines.shared_prefix import Row, SharedPrefixEngine
from cft.models.load import ModelSpec, load_causal_lm
from cft.types import GREEDY, Budget, Fork, Key, TokenSequence
from experiments.gpu.record import Record, kernels, milliseconds, wait

QWEN_7B: dict[str, int] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
QWEN_1_5B: dict[str, int] = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
TINY: dict[str, int] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
PREFIX = 400


def random_model(
    sizes: dict[str, int], *, device: torch.device, dtype: torch.dtype, tied: bool = False
) -> PreTrainedModel:
    """A Qwen2 of these sizes with random weights, created on the device."""
    torch.manual_seed(0)
    config = Qwen2Config(**sizes, max_position_embeddings=4096, tie_word_embeddings=tied)  # type: ignore[arg-type]
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def engine(record: Record) -> None:
    device, tiny = record.device, record.tiny
    sizes, prefix = (TINY, 20) if tiny else (QWEN_7B, PREFIX)
    shapes = ((1, 0, 4), (2, 2, 8)) if tiny else ((1, 0, 64), (6, 0, 256), (6, 4, 256), (6, 51, 256))
    budget_mb = 100 if tiny else 24_000
    model = random_model(sizes, device=device, dtype=torch.bfloat16)
    made = SharedPrefixEngine(model, (0,), max_rows=1024, kv_budget_mb=budget_mb, tie_margin=0.0)
    names = [f"bfloat16, {t} KV blocks, {s} sequences, {rows} rows" for t, s, rows in shapes]
    parts = [
        (name, partial(decode_step, made, *shape, prefix=prefix)) for name, shape in zip(names, shapes, strict=True)
    ]
    record.each(parts, needs=15)
    forks = many_forks(8 if tiny else 512, sequences=4, prefix=prefix, vocabulary=sizes["vocab_size"])
    budget = Budget(6 if tiny else 128)
    record.each([(f"{len(forks)} forks end to end", partial(end_to_end, made, forks, budget=budget))], needs=30)
    record.each([("a row scored again without a cache", partial(rescored, made, prefix=prefix))])
    record.each([("prefill of 8 sequences", partial(prefilled, made, prefix=prefix))])
    del made, model, parts
    torch.cuda.empty_cache()

    def in_float32() -> dict[str, float]:
        whole = random_model(sizes, device=device, dtype=torch.float32)
        exact = SharedPrefixEngine(whole, (0,), max_rows=1024, kv_budget_mb=budget_mb, tie_margin=0.0)
        return decode_step(exact, *shapes[-2], prefix=prefix)

    record.each([("float32, " + names[-2].split(", ", 1)[1], in_float32)], needs=40)


def many_forks(count: int, *, sequences: int, prefix: int, vocabulary: int) -> list[Fork]:
    """Greedy forks, equally many per sequence, that start in its second half."""
    rng = np.random.default_rng(0)
    made = [TokenSequence(rng.integers(3, vocabulary, prefix).astype(np.int32), prefix // 4) for _ in range(sequences)]
    cuts = rng.integers(prefix // 2, prefix, count)
    return [
        Fork(made[i % sequences], int(cut), int(rng.integers(3, vocabulary)), GREEDY, i) for i, cut in enumerate(cuts)
    ]


def decode_step(engine: SharedPrefixEngine, blocks: int, sequences: int, rows: int, *, prefix: int) -> dict[str, float]:
    """A decode step of `rows` rows in `blocks` KV blocks. sequences: shared prefixes, 0 = each row has its own."""
    vocabulary = int(engine.model.config.vocab_size)
    forks = many_forks(rows, sequences=sequences or rows, prefix=prefix, vocabulary=vocabulary)
    # No fork of a sequence may be alone in its group, or it would copy the prefix.
    forks.sort(key=lambda fork: int(fork.key) % max(1, sequences))  # type: ignore[call-overload]
    scheduler = Scheduler[Row](engine.prefill, max_rows=rows, budget_bytes=engine.kv_budget_bytes)
    for group in np.array_split(np.arange(rows), blocks):
        scheduler.waiting.extend(Row.start(forks[i], random=np.zeros(0)) for i in group)
        scheduler.admit()

    @torch.inference_mode()
    def step() -> None:
        logits_NV, _ = scheduler.fitting(engine.next_logits)
        assert logits_NV is not None
        batch = scheduler.rows
        tokens, _ = choose(
            logits_NV, sampling=[GREEDY] * len(batch), uniform=[0.0] * len(batch), tie_margin=0.0, written=batch
        )
        for row, token in zip(batch, tokens, strict=True):
            row.ids.append(token)
        for block in scheduler.blocks:
            block.advance()

    device = engine.model.device
    ms = milliseconds(step, device=device, times=20, warm=5)
    plan = scheduler.plan()
    return {
        "ms": ms,
        "tokens_per_s": 1000 * scheduler.live() / ms,
        "rows": scheduler.live(),
        "kv_blocks": len(plan.blocks),
        "shared": len(plan.shared),
        "cache_mb": scheduler.bytes_held() / 1e6,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0,
        **kernels(step, device=device),
    }


def end_to_end(engine: SharedPrefixEngine, forks: Sequence[Fork], *, budget: Budget) -> dict[str, float]:
    """Decode all forks, from the prefill of their sequences to the last token."""
    whole = Budget(budget.max_new_tokens + max(fork.prefix_len - fork.sequence.prompt_len for fork in forks))
    began = time.perf_counter()
    found = dict(engine.run(ListSource(forks), budget=whole))
    wait(engine.model.device)
    seconds = time.perf_counter() - began
    decoded = sum(completion.num_decoded for completion in found.values())
    return {"seconds": seconds, "tokens": decoded, "tokens_per_s": decoded / seconds, "back_offs": engine.back_offs}


def rescored(engine: SharedPrefixEngine, *, prefix: int) -> dict[str, float]:
    """Time to re-score a near tie."""
    ids = list(range(3, 3 + prefix + prefix // 2))
    fork = Fork(TokenSequence(np.asarray(ids, dtype=np.int32), prefix), prefix, None, GREEDY, 0)
    rescore = partial(engine.reference.rescore, ids, fork, uniform=0.0)
    return {"tokens": len(ids), "ms": milliseconds(rescore, device=engine.model.device, times=5)}


def prefilled(engine: SharedPrefixEngine, *, prefix: int) -> dict[str, float]:
    sequences = [fork.sequence for fork in many_forks(8, sequences=8, prefix=prefix, vocabulary=500)]
    ms = milliseconds(lambda: engine.prefill(sequences), device=engine.model.device, times=5)
    return {"tokens": 8 * prefix, "ms": ms, "tokens_per_s": 8000 * prefix / ms}


# ---- transformers' own


def continuous(record: Record) -> None:
    device, tiny = record.device, record.tiny
    record.each([("ids beside the shared-prefix engine", partial(same_ids, device=device))], needs=20)
    sizes, prefix = (TINY, 20) if tiny else (QWEN_7B, PREFIX)
    model = random_model(sizes, device=device, dtype=torch.bfloat16)
    forks = many_forks(8 if tiny else 512, sequences=4, prefix=prefix, vocabulary=sizes["vocab_size"])
    budget = Budget(6 if tiny else 128)
    for block, graphs in ((256, True), (256, False), (16, True), (32, False)):
        name = f"blocks of {block}, {'with' if graphs else 'without'} CUDA graphs"
        options = {"use_cuda_graph": graphs and device.type == "cuda"} | ({} if not tiny else {"num_blocks": 64})
        record.each(
            [(name, partial(by_continuous_batching, model, forks, budget=budget, block=block, **options))], needs=40
        )


def configured(*, block: int, **options: Any) -> Any:
    """A ContinuousBatchingConfig of the installed transformers: `block_size` became `page_size`, and other names vary."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    known = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    options |= {"page_size" if "page_size" in known else "block_size": block, "allow_block_sharing": True}
    return ContinuousBatchingConfig(**{name: value for name, value in options.items() if name in known})


@contextmanager
def manager_of(model: PreTrainedModel, *, eos: int, limit: int, config: Any) -> Iterator[Any]:
    generation = GenerationConfig(do_sample=False, eos_token_id=eos, pad_token_id=0, max_new_tokens=limit)
    with model.continuous_batching_context_manager(  # type: ignore[operator]
        generation, continuous_batching_config=config, timeout=20
    ) as manager:
        yield manager


def continued(
    model: PreTrainedModel, forks: Sequence[Fork], *, eos: int, limit: int, config: Any, patience_s: float = 60
) -> tuple[dict[Key, list[int]], float]:
    """Ids decoded for each fork, and seconds from the first request to the last result."""
    found: dict[Key, list[int]] = {}
    with manager_of(model, eos=eos, limit=limit, config=config) as manager:
        began = time.perf_counter()
        for i, fork in enumerate(forks):
            manager.add_request(fork_prefix(fork), request_id=f"fork{i}", max_new_tokens=limit, eos_token_id=eos)
        until = time.monotonic() + patience_s
        while len(found) < len(forks):
            out = manager.get_result(timeout=1)
            if out is None:
                if time.monotonic() > until or not manager.is_running():
                    raise RuntimeError(f"{len(found)} of {len(forks)} forks after {patience_s} s without a result")
                continue
            until = time.monotonic() + patience_s
            if out.error:
                raise RuntimeError(str(out.error))
            if out.is_finished():
                found[forks[int(out.request_id.removeprefix("fork"))].key] = list(out.generated_tokens)
        return found, time.perf_counter() - began


def by_continuous_batching(
    model: PreTrainedModel, forks: Sequence[Fork], *, budget: Budget, block: int, **options: Any
) -> dict[str, float]:
    config = configured(block=block, **options)
    began = time.perf_counter()
    found, seconds = continued(model, forks, eos=0, limit=budget.max_new_tokens, config=config)
    decoded = sum(map(len, found.values()))
    return {
        "seconds": seconds,
        "seconds_with_start": time.perf_counter() - began,
        "tokens": decoded,
        "tokens_per_s": decoded / seconds,
    }


def same_ids(*, device: torch.device) -> dict[str, int]:
    """Number of continuations of tiny_arith in float32 that equal the shared-prefix engine's."""
    model = load_causal_lm(ModelSpec(name="tiny_arith", path="package:tiny_arith")).to(device)  # type: ignore[arg-type]
    eos = model.generation_config.eos_token_id if model.generation_config else 0
    eos = eos[0] if isinstance(eos, list) else int(eos or 0)
    forks = many_forks(40, sequences=4, prefix=30, vocabulary=int(model.config.vocab_size))
    limit = 40
    ours: dict[Key, list[int]] = {}
    for key, completion in SharedPrefixEngine(model, (eos,)).run(ListSource(forks), budget=Budget(limit + 30)):
        ours[key] = completion.ids[-completion.num_decoded :].tolist()[:limit]
    config = configured(block=16, num_blocks=512, max_batch_tokens=512, use_cuda_graph=False)
    theirs, _ = continued(model, forks, eos=eos, limit=limit, config=config)
    return {"forks": len(forks), "equal": sum(theirs[key][:limit] == ids for key, ids in ours.items())}
