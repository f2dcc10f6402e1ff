"""Which kernels a model trains with. Configured by `compute.kernels`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from cft.models.cpu.gradient_in_place import use_lean_embeddings
from cft.models.cpu.onednn_linear import use_onednn
from cft.models.cpu.recomputed_layers import use_lean_layers

Kernels = Literal["auto", "torch", "compiled"]


@dataclass(frozen=True, slots=True)
class Used:
    """How many layers compute in another way than the model's code says, with the same result but for rounding."""

    onednn_linears: int = 0
    lean_layers: int = 0
    compiled_blocks: int = 0


def use_kernels(model: PreTrainedModel, *, kernels: Kernels) -> Used:
    """auto: on a CPU, in float32, oneDNN's products and layers that keep less, where each comes out right. The choice
    depends on no timing, so that a repeated run computes the same bits.
    torch: the model as it is. compiled: torch.compile of each of its blocks, for training only."""
    if kernels == "auto":
        return Used(use_onednn(model), use_lean_layers(model) + use_lean_embeddings(model))
    if kernels == "compiled":
        return Used(compiled_blocks=_compile_blocks(model))
    return Used()


def _compile_blocks(model: PreTrainedModel) -> int:
    names = set(model._no_split_modules or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    for block in blocks:
        block.compile(dynamic=True)
        block._compiled_call_impl = _TrainingOnly(block, block._compiled_call_impl)
    return len(blocks)


class _TrainingOnly:
    """Calls of a block, compiled outside inference mode: engines go on choosing with the model's own bits."""

    def __init__(self, block: nn.Module, compiled: Any) -> None:
        self._block, self._compiled = block, compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_inference_mode_enabled():
            return self._block._call_impl(*args, **kwargs)
        return self._compiled(*args, **kwargs)
