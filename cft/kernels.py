"""Which kernels a model trains with. Configured by `compute.kernels`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from cft.lean_layers import use_lean_layers
from cft.onednn_linear import use_onednn

Kernels = Literal["auto", "torch"]


@dataclass(frozen=True, slots=True)
class Used:
    """How many layers compute in another way than the model's code says, with the same result but for rounding."""

    onednn_linears: int = 0
    lean_layers: int = 0


def use_kernels(model: nn.Module, *, kernels: Kernels) -> Used:
    """auto: on a CPU, in float32, oneDNN's products and layers that keep less, where each comes out right. The choice
    depends on no timing, so that a repeated run computes the same bits. torch: the model as it is."""
    if kernels == "torch":
        return Used()
    return Used(use_onednn(model), use_lean_layers(model))
