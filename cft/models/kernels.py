"""The only interface to kernels and memory management: selects those that a model trains and decodes with.

CPU kernels are in `cft/models/cpu/`, which no other module of the package imports. A GPU uses the library's kernels and the
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

# Kernels take numbers of tokens that are multiples of this; others are padded, which costs memory.
TOKENS_STEP = 32

keep_freed_memory = allocator.keep_freed_memory
give_back_freed_memory = allocator.give_back_freed_memory
training_pass = onednn_linear.training_pass


@dataclass(frozen=True, slots=True)
class Used:
    """How many layers use other kernels than the model's own code, with the same result up to rounding.

    fused_loss: whether log-probs may be computed by `cft/models/fused_head.py` where it supports the model.
    """

    onednn_linears: int = 0
    recomputed_layers: int = 0
    compiled_blocks: int = 0
    fused_loss: bool = False


def prepare_for_training(model: PreTrainedModel, *, kernels: Kernels) -> Used:
    """Select the kernels for training.

    Args:
        model: The model, which is changed in place.
        kernels: "auto": on a CPU in float32, oneDNN products and activation recomputation, if they pass their checks; on a GPU
            in float32, the library's fused loss. The choice does not depend on timing, so that a repeated run computes the
            same bits. "torch": the model as it is. "compiled": torch.compile of each block, for training only.
    """
    if kernels == "auto":
        recomputed = recomputed_layers.use_recomputed_layers, gradient_in_place.use_in_place_embeddings
        return Used(onednn_linear.use_onednn(model), sum(use(model) for use in recomputed), fused_loss=True)
    if kernels == "compiled":
        return Used(compiled_blocks=_compile_blocks(model))
    return Used()


class DecodingKernels(Protocol):
    """Faster forms of the layers of a model whose weights do not change. Its length: the number of such layers."""

    def __len__(self) -> int: ...

    def active(self) -> AbstractContextManager[None]:
        """Within this context, the model uses the faster forms."""
        ...


def prepare_for_decoding(model: PreTrainedModel, *, kernels: DecodingChoice = "auto") -> DecodingKernels:
    """Select the kernels for decoding.

    Args:
        model: The model.
        kernels: "auto": faster linear layers in float32 on a CPU, at the cost of a second copy of their weights. "torch": the
            model as it is.
    """
    return packed_linear.PackedLinears(model if kernels == "auto" else nn.Identity())


def keeps_gradients(device: torch.device, *, alone: bool) -> bool:
    """Whether gradient tensors are kept between steps and accumulated in place.

    alone: no other process waits for a gradient. On a CPU, freeing gradients between steps would fragment memory.
    """
    return alone and device.type == "cpu"


def backward_pass(*, keep_gradients: bool) -> AbstractContextManager[None]:
    """Context of a backward pass that accumulates into `.grad` of every weight."""
    return gradient_in_place.gradients_in_place(enabled=keep_gradients)


def products(device: torch.device, *, dtype: torch.dtype) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """Additional matrix products that linear layers may use on `device`, as functions of x [N, d] and weight [e, d]."""
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
    """Calls the compiled block, except in inference mode, so that engines compute the same bits as without compilation."""

    def __init__(self, block: nn.Module, compiled: Any) -> None:
        self._block, self._compiled = block, compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_inference_mode_enabled():
            return self._block._call_impl(*args, **kwargs)
        return self._compiled(*args, **kwargs)
