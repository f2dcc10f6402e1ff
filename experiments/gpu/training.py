"""Training steps of random models on one device: tokens/s, fraction of the matrix product rate, memory against the estimate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from cft.data.batches import TokenRow, collate
from cft.losses.aggregation import TokenMean
from cft.losses.objective import Objective
from cft.losses.token import NLL
from cft.models.flops import arithmetic_of, matmul_rate
from cft.models.kernels import Kernels, prepare_for_training
from cft.models.load import Lora, apply_lora
from cft.training.layout import Layout
from cft.training.memory import estimate
from cft.training.selective_lm import SelectiveLM
from cft.types import StepCounts, TokenBatch
from cft.weightings.token import Uniform
from experiments.gpu.decoding import QWEN_1_5B, QWEN_7B, TINY, random_model
from experiments.gpu.record import Record, milliseconds, wait

Kind = Literal["mixed", "bfloat16", "adapters"]
H100_BF16 = 989e12  # dense, from its data sheet


def training(record: Record) -> None:
    device, tiny = record.device, record.tiny
    small, large = (TINY, TINY) if tiny else (QWEN_1_5B, QWEN_7B)
    rate = matmul_rate(device, mixed=True)
    record.put("matmul TFLOP/s in bfloat16", rate / 1e12)
    record.put("matmul TFLOP/s in float32", matmul_rate(device, mixed=False) / 1e12)
    rows = rows_of(4 if tiny else 16, mean=30 if tiny else 600, vocabulary=small["vocab_size"], density=0.12)
    full = rows_of(4 if tiny else 16, mean=30 if tiny else 600, vocabulary=small["vocab_size"], density=1.0)
    measured = partial(steps, device=device, rate=rate, times=2 if tiny else 5)
    saving: dict[str, Any] = {"checkpointing": True}
    padded: dict[str, Any] = {**saving, "layout": "padded"}
    whole: dict[str, Any] = {**saving, "kind": "bfloat16"}  # weights and gradients of 7B take 30 GB
    arms: list[tuple[str, dict[str, int], list[TokenRow], dict[str, Any]]] = [
        ("1.5B packed", small, rows, {}),
        ("1.5B packed, checkpointing", small, rows, saving),
        ("1.5B padded, checkpointing", small, rows, padded),
        ("1.5B packed, all tokens, checkpointing", small, full, saving),
        ("1.5B transformers' own loss, all tokens, checkpointing", small, full, {**padded, "plain": True}),
        ("7B bfloat16, no optimizer, checkpointing", large, rows, whole),
        ("7B bfloat16, no optimizer, all tokens, checkpointing", large, full, whole),
        ("7B transformers' own loss, no optimizer", large, full, {**whole, **padded, "plain": True}),
        ("7B adapters, checkpointing", large, rows, {**saving, "kind": "adapters"}),
        ("1.5B packed, compiled blocks, checkpointing", small, rows, {**saving, "kernels": "compiled"}),
        ("1.5B packed, compiled blocks", small, rows, {"kernels": "compiled"}),
    ]
    record.each([(name, partial(measured, sizes, on, **options)) for name, sizes, on, options in arms], needs=25)


def rows_of(count: int, *, mean: int, vocabulary: int, density: float) -> list[TokenRow]:
    """Rows of length mean / 3 to 5 mean / 3, a quarter of each prompt. density: fraction of response tokens with loss."""
    rng = np.random.default_rng(0)
    rows = []
    for i, length in enumerate(np.linspace(mean / 3, 5 * mean / 3, count).astype(int)):
        response = np.arange(length) >= length // 4
        weight = (response & (rng.random(length) < density)).astype(np.float32)
        weight[-1] = 1.0
        probe = np.where(response, weight > 0, -1).astype(np.int8)
        rows.append(TokenRow(f"r{i}", rng.integers(3, vocabulary, length), weight, probe))
    return rows


def steps(
    sizes: dict[str, int],
    rows: list[TokenRow],
    *,
    device: torch.device,
    rate: float,
    times: int,
    kind: Kind = "mixed",
    layout: Layout = "packed",
    checkpointing: bool = False,
    kernels: Kernels = "auto",
    plain: bool = False,
) -> dict[str, float]:
    """Measure training steps. Kinds: "mixed": float32 weights under autocast with AdamW; "bfloat16": bfloat16 weights and
    gradients, forward and backward only; "adapters": bfloat16 weights with low-rank adapters. plain: all rows padded, with
    `model(labels=...)`."""
    torch.manual_seed(0)
    before = allocated(device)
    # Embeddings are tied as in the 1.5B checkpoint.
    tied = sizes is QWEN_1_5B
    dtype = torch.float32 if kind == "mixed" else torch.bfloat16
    model = random_model(sizes, device=device, dtype=dtype, tied=tied)
    if kind == "adapters":
        apply_lora(model, lora=Lora())
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    objective = Objective(
        Uniform(), token_loss=NLL(), aggregation=TokenMean(), normalizer="critical", regularizers={}, chunk_tokens=1024
    )
    batch = collate(rows, step_counts=sum((row.counts() for row in rows), StepCounts())).to(device)
    tokens = sum(row.needed() for row in rows)
    # `plain` computes rows padded to the longest; padding is not counted as useful.
    computed = len(rows) * max(row.needed() for row in rows) if layout == "padded" else tokens
    trained = [p for p in model.parameters() if p.requires_grad]
    states = 0 if kind == "bfloat16" else 2
    mixed = kind == "mixed"
    expected = estimate(model, states_per_parameter=states, tokens=computed, chunk_tokens=1024, shards=1, mixed=mixed)
    work = arithmetic_of(model).of_rows([row.needed() for row in rows], projected=int(batch.step_counts.eligible))
    prepare_for_training(model, kernels=kernels)
    lm = SelectiveLM(model, objective, layout="padded" if plain else layout)
    model.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=device.type == "cuda") if states else None
    loss_of: Callable[[], torch.Tensor] = partial(_plain_loss, model, batch) if plain else partial(_our_loss, lm, batch)
    losses: list[float] = []
    phases: dict[str, float] = {}  # GB, each peak since the one before

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=kind != "bfloat16"):
            loss = loss_of()
        phases["after forward"], phases["peak of forward"] = allocated(device), allocated(device, peak=True)
        loss.backward()
        phases["after backward"], phases["peak of backward"] = allocated(device), allocated(device, peak=True)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        if optimizer is not None:
            optimizer.step()
        for parameter in trained:
            parameter.grad = None
        losses.append(float(loss.detach()))

    wait(device)
    allocated(device, peak=True)
    ms = milliseconds(step, device=device, times=times, warm=2)
    peak = max(value for name, value in phases.items() if name.startswith("peak"))
    return {
        "ms": ms,
        "tokens_per_s": 1000 * tokens / ms,
        "mfu_of_measured": 1000 * work / ms / rate,
        "mfu_of_989_tflops": 1000 * work / ms / H100_BF16,
        "peak_gb": peak,
        "allocated_before_gb": before,
        **{f"{name}, GB": value for name, value in phases.items()},
        "estimate_gb": expected.total / 1e9,
        "estimated_activations_gb": expected.activations / 1e9,
        "peak_over_estimate": peak * 1e9 / expected.total,
        "tokens": tokens,
        "first_loss": losses[0],
    }


def allocated(device: torch.device, *, peak: bool = False) -> float:
    """Current memory in GB, or the peak since it was last read."""
    if device.type != "cuda":
        return 0.0
    if not peak:
        return torch.cuda.memory_allocated() / 1e9
    found = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return found


def _our_loss(lm: SelectiveLM, batch: TokenBatch) -> torch.Tensor:
    return torch.stack([term.mean(batch.step_counts) for term in lm(batch)]).sum()


def _plain_loss(model: PreTrainedModel, batch: TokenBatch) -> Any:
    labels = batch.input_ids_BT.masked_fill(batch.weight_BT == 0, -100)
    return model(input_ids=batch.input_ids_BT, labels=labels, use_cache=False).loss
