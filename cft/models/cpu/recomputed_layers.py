"""Activation recomputation in gated feed-forward layers and RMS norms: saves less for the backward pass and needs fewer passes
over memory, because cheap values are recomputed.

    gated feed-forward   saves gate and up; silu(gate) and its product with up are recomputed
    RMS norm             saves its input and one number per token; the normalized values are recomputed, also by the layers
                         of `cft/models/cpu/onednn_linear.py` that read them

For a Llama of SmolLM2's size this saves nearly half of the activations (264 of 504 MB at 375 tokens). Layers are recognized by
their submodules, not by the model's name. Each kind of layer is first compared with its own forward pass; layers that differ
(another activation, another form of norm) are not changed.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from cft.models.cpu.onednn_linear import OneDnnLinear, gradient_of_weight, kernels_enabled, mark_recomputable, product
from cft.models.rounding import half_of_the_digits


def use_recomputed_layers(model: nn.Module) -> int:
    """Change the forward pass of the model's gated feed-forward layers and RMS norms; returns how many were changed.

    Each layer keeps its class, its weights, and its own forward pass for other dtypes.
    """
    changed = 0
    right: dict[tuple[type, Any], bool] = {}
    for layer, forward in [*_candidates(model)]:
        kind = (type(layer), getattr(layer, "act_fn", None).__class__)
        if kind not in right:
            right[kind] = _same(layer, forward)
        if right[kind]:
            # A bound method, so that copies of the model bind it to the copied layer.
            layer.forward = types.MethodType(forward, layer)
            changed += 1
    return changed


def _candidates(model: nn.Module) -> Iterator[tuple[nn.Module, Callable[[Any, Tensor], Tensor]]]:
    for layer in model.modules():
        if all(isinstance(getattr(layer, name, None), nn.Module) for name in ("gate_proj", "up_proj", "down_proj")):
            yield layer, _gated_forward
        elif type(layer).__name__.endswith("RMSNorm") and hasattr(layer, "variance_epsilon"):
            yield layer, _norm_forward


@torch.inference_mode(False)
@torch.no_grad()
def _same(layer: nn.Module, forward: Callable[[Any, Tensor], Tensor]) -> bool:
    """Whether the recomputing form gives the layer's result; tested on the layer itself, or, if its weights are not loaded yet,
    on a copy with other weights."""
    weight = next(p for p in layer.parameters())
    if weight.is_meta:
        layer = copy.deepcopy(layer).to_empty(device="cpu")
        for parameter in layer.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter).sin())
        weight = next(p for p in layer.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    x_Nd = torch.linspace(-2, 2, 3 * weight.shape[-1]).view(3, -1).sin()
    expected, found = layer(x_Nd), forward(layer, x_Nd)
    return bool((found - expected).abs().max() <= half_of_the_digits(torch.float32) * expected.abs().max())


def _gated_forward(layer: Any, x: Tensor) -> Tensor:
    if not kernels_enabled(x):
        return type(layer).forward(layer, x)
    gate, up, down = layer.gate_proj(x), layer.up_proj(x), layer.down_proj
    if type(down) is OneDnnLinear and x.numel() and not (down._forward_hooks or down._forward_pre_hooks):
        return _GatedDown.apply(gate, up, down.weight, down.bias)
    return down(_Gated.apply(gate, up))


def _norm_forward(layer: Any, x: Tensor) -> Tensor:
    if not kernels_enabled(x):
        return type(layer).forward(layer, x)
    y, scale = _RmsNorm.apply(x, layer.weight, layer.variance_epsilon)
    mark_recomputable(y, x, scale, layer.weight)
    return y


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        return _of_gate(gradient, gate, up), silu(gate).mul_(gradient)


class _GatedDown(torch.autograd.Function):
    """`_Gated` and the following linear layer in one, so that the input of the latter is not saved either."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.parameter = weight
        ctx.save_for_backward(gate, up, weight)
        inner = silu(gate).mul_(up)
        return product(inner.flatten(0, -2), weight, bias).view(*gate.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gate, up, weight = ctx.saved_tensors
        gradient_Nd = gradient.flatten(0, -2)
        activated = silu(gate)
        of_weight = None
        if ctx.needs_input_grad[2]:
            of_weight = gradient_of_weight(ctx.parameter, gradient_Nd, (activated * up).flatten(0, -2))
        of_inner = product(gradient_Nd, weight.t()).view_as(gate)
        of_up = activated.mul_(of_inner)
        of_bias = gradient_Nd.sum(0) if ctx.needs_input_grad[3] else None
        return _of_gate(of_inner, gate, up), of_up, of_weight, of_bias


def _of_gate(gradient: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward(gradient * up, gate)


class _RmsNorm(torch.autograd.Function):
    """y = weight * x / sqrt(mean(x^2) + epsilon)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        ctx.mark_non_differentiable(scale)
        return (x * scale).mul_(weight), scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        both_Nd = (gradient * x).flatten(0, -2)
        of_weight = both_Nd.t() @ scale.flatten() if ctx.needs_input_grad[1] else None
        along = (both_Nd @ weight).view_as(scale).mul_(scale.pow(3)).div_(x.shape[-1])
        of_x = (gradient * weight).mul_(scale).addcmul_(x, along, value=-1)
        return of_x, of_weight, None
