"""Gradients of the vocabulary's matrices, added to `weight.grad` directly instead of computed apart for each micro-batch.

The embedding and the output head are the largest weights of a small model, and with sparse masks a micro-batch touches few of
their rows by much. Plainly each backward pass makes a dense gradient of either, adds the two where they are tied, and adds
the sum to what was there; blocks of that size, made and freed between smaller ones, also leave holes that the allocator
fills with fragments. Inside `gradients_in_place` both add to `weight.grad` themselves.

Not under a strategy that waits for each gradient (DDP's hooks): `CausalLMModule.backward` switches it on for one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

MIN_WEIGHTS = 4_000_000  # smaller gradients are made and freed without harm

_inside: ContextVar[bool] = ContextVar("gradients are added in place", default=False)


@contextmanager
def gradients_in_place(*, enabled: bool) -> Iterator[None]:
    """Around a backward pass that is meant to fill `.grad` of every weight."""
    token = _inside.set(enabled)
    try:
        yield
    finally:
        _inside.reset(token)


def accumulated_gradient(weight: Tensor) -> Tensor | None:
    """`weight.grad` to add to, zeros where there was none; None where the gradient must be returned to autograd."""
    if not _inside.get() or weight.numel() < MIN_WEIGHTS or weight.dtype != torch.float32:
        return None
    if not isinstance(weight, nn.Parameter):  # a view or a copy, whose .grad nobody reads
        return None
    if weight._backward_hooks or weight._post_accumulate_grad_hooks:
        return None
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


class InPlaceEmbedding(nn.Embedding):
    """An nn.Embedding, changed by changing its class: weights, names, hooks and copies stay as they are."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.weight.requires_grad and self.weight.device.type == "cpu":
            return _Lookup.apply(self.weight, input, self.padding_idx)
        return super().forward(input)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding_id: int | None) -> Tensor:
        ctx.parameter = weight  # saved, it might come back as a copy, whose .grad is nobody's
        ctx.save_for_backward(ids)
        ctx.padding_id = padding_id
        return embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:  # type: ignore[override]
        weight, (ids,) = ctx.parameter, ctx.saved_tensors
        ids_N, rows_ND = ids.flatten(), gradient.flatten(0, -2).to(weight.dtype)
        if ctx.padding_id is not None:  # nn.Embedding gives the padding token no gradient
            rows_ND = rows_ND * (ids_N != ctx.padding_id)[:, None]
        accumulated = accumulated_gradient(weight)
        if accumulated is None:
            return torch.zeros_like(weight).index_add_(0, ids_N, rows_ND), None, None
        accumulated.index_add_(0, ids_N, rows_ND)
        return None, None, None


def use_in_place_embeddings(model: nn.Module) -> int:
    """Let the model's large embeddings do so; returns how many do."""
    layers = [
        m
        for m in model.modules()
        if type(m) is nn.Embedding
        and m.weight.numel() >= MIN_WEIGHTS
        and not (m.sparse or m.scale_grad_by_freq or m.max_norm is not None)
    ]
    for layer in layers:
        layer.__class__ = InPlaceEmbedding
    return len(layers)
