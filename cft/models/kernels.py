"""The only interface to kernels and memory management: which ones a model trains and decodes with is decided here.

Those for a CPU are in `cft/models/cpu/`, which nothing else in the package knows. A GPU has its library's own, but for the
fused loss of `cft/models/fused_head.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from cft.models.cpu import allocator, gradient_in_place, onednn_linear, packed_linear, recomputed_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kernels = Literal["auto", "torch", "compiled"]
DecodingChoice = Literal["auto", "torch"]

# Tokens of a forward pass come in multiples of this to the kernels; others are padded, and keep memory for it.
TOKENS_STEP = 32

keep_freed_memory = allocator.keep_freed_memory
give_back_freed_memory = allocator.give_back_freed_memory
training_pass = onednn_linear.training_pass


@dataclass(frozen=True, slots=True)
class Used:
    """How many layers compute in another way than the model's code says, with the same result but for rounding.
    fused_loss: whether log-probs may come from `cft/models/fused_head.py`, where it says that they are right."""

    onednn_linears: int = 0
    recomputed_layers: int = 0
    compiled_blocks: int = 0
    fused_loss: bool = False


def prepare_for_training(model: PreTrainedModel, *, kernels: Kernels) -> Used:
    """auto: on a CPU, in float32, oneDNN's products and layers that keep less, where each comes out right. The choice
    depends on no timing, so that a repeated run computes the same bits. On a GPU in float32 the library's fused loss.
    torch: the model as it is. compiled: torch.compile of each of its blocks, for training only."""
    if kernels == "auto":
        recomputed = recomputed_layers.use_recomputed_layers, gradient_in_place.use_in_place_embeddings
        return Used(onednn_linear.use_onednn(model), sum(use(model) for use in recomputed), fused_loss=True)
    if kernels == "compiled":
        return Used(compiled_blocks=_compile_blocks(model))
    return Used()


class DecodingKernels(Protocol):
    """Layers of a model whose weights do not change. Its length: how many of them have a faster form."""

    def __len__(self) -> int: ...

    def active(self) -> AbstractContextManager[None]:
        """The model computes with them while this is open."""
        ...


def prepare_for_decoding(model: PreTrainedModel, *, kernels: DecodingChoice = "auto") -> DecodingKernels:
    """auto: costs a second copy of the weights that have a faster form: the linear layers, in float32 on a CPU.
    torch: the model as it is."""
    return packed_linear.PackedLinears(model if kernels == "auto" else nn.Identity())


def keeps_gradients(device: torch.device, *, alone: bool) -> bool:
    """Whether gradients stay where they are between two steps and are added to in place. alone: no other process waits for
    a gradient. On a CPU memory that is given back between two steps would come back in fragments."""
    return alone and device.type == "cpu"


def backward_pass(*, keep_gradients: bool) -> AbstractContextManager[None]:
    """Around a backward pass that is meant to fill `.grad` of every weight."""
    return gradient_in_place.gradients_in_place(enabled=keep_gradients)


def products(device: torch.device, *, dtype: torch.dtype) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """What linear layers may multiply with on `device`, as functions of x [N, d] and weight [e, d]."""
    found: list[Callable[[Tensor, Tensor], Tensor]] = []
    if device.type == "cpu" and dtype == torch.float32 and onednn_linear.available():
        found.append(onednn_linear.product)
    return found


def _compile_blocks(model: PreTrainedModel) -> int:
    names = set(model._no_split_modules or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    for block in blocks:
        block.compile(dynamic=True)
        block._compiled_call_impl = _TrainingOnly(block, block._compiled_call_impl)
    return len(blocks)


class _TrainingOnly:
    """Calls of a block, compiled outside inference mode: engines keep choosing with the model's own bits."""

    def __init__(self, block: nn.Module, compiled: Any) -> None:
        self._block, self._compiled = block, compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_inference_mode_enabled():
            return self._block._call_impl(*args, **kwargs)
        return self._compiled(*args, **kwargs)
