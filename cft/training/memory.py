"""Estimates the memory of a training run before it starts.

    weights + gradients + optimizer state                       exact, from the parameters; sharded under trainer=fsdp
    activations = fixed + bytes per token * tokens               both measured by forward passes over few tokens; the fixed
                                                                part is the weight copies that autocast keeps. With gradient
                                                                checkpointing, plus all activations of one block, which is
                                                                recomputed in the backward pass
    logits      = 3 * loss.chunk_tokens * vocabulary * 4 bytes  logits, their log-softmax, its gradient

Attention that stores its scores (eager) or a mask (sliding window, on a CPU) grows faster than this. Memory fragmentation is
not included. A mixture-of-experts model holds all its weights, but activations only of the experts each token is routed to.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cft.console import size
from cft.errors import UserError
from cft.models.architecture import is_recurrent
from cft.models.head import backbone
from cft.models.kernels import TOKENS_STEP
from cft.training.callbacks.guards import ADVICE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLEARLY = 1.25  # if the estimate exceeds the memory by this factor, estimation error cannot explain it


class DoesNotFit(UserError, ValueError):
    """The training clearly needs more memory than the device has."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on one device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "activations", "logits")
        listed = ", ".join(f"{part} {size(getattr(self, part))}" for part in parts)
        return f"about {size(self.total)} ({listed})"


def estimate(
    model: PreTrainedModel,
    *,
    states_per_parameter: int,
    tokens: int,
    chunk_tokens: int,
    shards: int,
    mixed: bool,
) -> MemoryEstimate:
    """Estimate the peak memory of a training step on one device.

    Args:
        model: the unsharded model, on the device of the forward pass.
        states_per_parameter: optimizer state per parameter; 2 for Adam.
        tokens: size of the micro-batch, see `largest_micro_batch`.
        chunk_tokens: tokens whose logits are computed at a time (`loss.chunk_tokens`).
        shards: number of processes over which the parameters are sharded.
        mixed: whether bf16 autocast is used.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    embedding: Any = model.get_input_embeddings()
    vocabulary = embedding.weight.shape[0]
    return MemoryEstimate(
        weights // shards,
        trained // shards,
        states_per_parameter * trained // shards,
        activation_bytes(model, tokens=tokens, mixed=mixed) + recomputed_bytes(model, tokens=tokens, mixed=mixed),
        3 * min(chunk_tokens, tokens) * int(vocabulary) * 4,
    )


def largest_micro_batch(lengths: Sequence[int], *, batch_size: int, padded: bool) -> int:
    """Number of tokens in a micro-batch of the longest rows. lengths: of all rows, in tokens."""
    longest = sorted(lengths, reverse=True)[:batch_size]
    return len(longest) * longest[0] if padded else sum(longest)


def activation_bytes(model: PreTrainedModel, *, tokens: int, mixed: bool) -> int:
    """Bytes that the backbone keeps for the backward pass of `tokens` tokens, extrapolated linearly from two measurements."""
    few, more = measured_tokens(model)
    kept_few, kept_more = (_kept_bytes(model, tokens=n, mixed=mixed) for n in (few, more))
    a_token = (kept_more - kept_few) / (more - few)
    return max(0, round(kept_few + a_token * (tokens - few)))


def measured_tokens(model: PreTrainedModel) -> tuple[int, int]:
    """Numbers of tokens of the two measurements. State-space models pad shorter rows to their chunk length."""
    config = model.config.get_text_config(decoder=True)
    chunks = [int(getattr(config, name, None) or 0) for name in ("chunk_size", "mamba_chunk_size")]
    step = max(TOKENS_STEP, *(chunks if is_recurrent(model.config) else (0,)))
    return step, 3 * step


def recomputed_bytes(model: PreTrainedModel, *, tokens: int, mixed: bool) -> int:
    """Bytes of the activations of one block, which gradient checkpointing recomputes in the backward pass; 0 without it."""
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    if not layers:
        return 0
    for module in layers:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        whole = activation_bytes(model, tokens=tokens, mixed=mixed)
    finally:
        for module in layers:
            module.gradient_checkpointing = True  # type: ignore[assignment]
    return whole // max(1, model.config.get_text_config(decoder=True).num_hidden_layers)


def _kept_bytes(model: PreTrainedModel, *, tokens: int, mixed: bool) -> int:
    """Bytes that one forward pass saves for its backward pass, without parameters and buffers."""
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}  # kept alive during the pass, so that no later tensor reuses an address

    def pack(tensor: Tensor) -> None:
        # Return nothing: a graph that saves its own tensors is a reference cycle and would never free the weights.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage

    def unpack(_: None) -> Tensor:
        raise RuntimeError("the pass that measures memory has no backward pass")

    was_training = model.training
    model.train()  # gradient checkpointing is only active in training mode
    ids = torch.zeros(1, tokens, dtype=torch.long, device=model.device)
    with (
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=mixed),
        torch.autograd.graph.saved_tensors_hooks(pack, unpack),
    ):
        backbone(model)(input_ids=ids, use_cache=False)
    model.train(was_training)
    return sum(storage.nbytes() for storage in kept.values())


def states_per_parameter(optimizer: Any) -> int:
    """Number of state values per parameter of the optimizer that a factory builds: 2 unless known to be fewer."""
    kind = getattr(optimizer, "func", optimizer)
    if kind is torch.optim.SGD:
        return int(bool(getattr(optimizer, "keywords", {}).get("momentum", 0)))
    return 2


def device_memory(device: torch.device) -> int:
    """Total memory of a GPU in bytes; for a CPU, the bytes still available to this process."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        available = min(available, int(lines["MemAvailable"].split()[0]) * 1024)
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        available = min(available, int(text))
    return available


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free


def checkpoint_bytes(found: MemoryEstimate, *, shards: int, keep: int) -> tuple[int, int]:
    """(bytes of one checkpoint, peak bytes of all checkpoints on disk).

    The peak includes one extra checkpoint, since a new one is written before an old one is removed, and the weights of the
    best epoch.
    """
    weights = found.gradients * shards  # frozen weights are not saved
    one = weights + found.optimizer * shards
    return one, (keep + 1) * one + weights


def require_room(found: MemoryEstimate, *, memory: int) -> None:
    """Raises DoesNotFit if the estimate clearly exceeds `memory` bytes."""
    if found.total > CLEARLY * memory:
        raise DoesNotFit(f"a step needs {found}, but the device has {size(memory)}. {ADVICE}")
