"""Adds gradients of the embedding and the output head directly to `weight.grad`, without a separate tensor per micro-batch.

The embedding and the output head are the largest weights of a small model, and with sparse masks a micro-batch changes few of
their rows by much. By default each backward pass creates a dense gradient of each, adds the two if they are tied, and adds the
sum to the accumulated gradient. Allocating and freeing such large blocks between smaller ones also fragments memory. Within
`gradients_in_place`, both add to `weight.grad` themselves.

Not usable with a strategy that waits for each gradient (DDP's hooks): `CausalLMModule.backward` enables it for a single
process.
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

MIN_WEIGHTS = 4_000_000  # smaller gradients are cheap to allocate and free

_inside: ContextVar[bool] = ContextVar("gradients are added in place", default=False)


@contextmanager
def gradients_in_place(*, enabled: bool) -> Iterator[None]:
    """Context of a backward pass that accumulates into `.grad` of every weight."""
    token = _inside.set(enabled)
    try:
        yield
    finally:
        _inside.reset(token)


def accumulated_gradient(weight: Tensor) -> Tensor | None:
    """`weight.grad` (zeros if it did not exist) to add to, or None if the gradient must be returned to autograd."""
    if not _inside.get() or weight.numel() < MIN_WEIGHTS or weight.dtype != torch.float32:
        return None
    if not isinstance(weight, nn.Parameter):  # the .grad of a view or copy is not used
        return None
    if weight._backward_hooks or weight._post_accumulate_grad_hooks:
        return None
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


class InPlaceEmbedding(nn.Embedding):
    """An nn.Embedding, converted by assigning its `__class__`: weights, names, hooks and copies are unaffected."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.weight.requires_grad and self.weight.device.type == "cpu":
            return _Lookup.apply(self.weight, input, self.padding_idx)
        return super().forward(input)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding_id: int | None) -> Tensor:
        ctx.parameter = weight  # a saved tensor might come back as a copy, whose .grad is not used
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
    """Convert the model's large embeddings to `InPlaceEmbedding`; returns their number."""
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
