"""Model FLOPs utilization (MFU): floating-point operations of a training step, and the rate that the device could reach.

    forward            2 N per token, N = weights of the matrix products that the token passes through; in a mixture of experts,
                       those of its experts
    backward           2 N for the gradient of the inputs, 2 N_trained for that of the weights
    attention          scores and weighted sum, causal: 2 L h T per token forward, twice that backward; T = length of the row,
                       limited by the window in layers with a window of W tokens; h = number of query heads times their width
    recurrent layers   projections and convolutions are part of N; the state update is not counted
    head               like the blocks, but only for projected tokens

Padding and recomputation (gradient checkpointing) are not counted, so both lower MFU.
MFU = operations of a step / (its time * measured rate of matrix products).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from cft.models import kernels
from cft.models.architecture import attention_layers, window
from cft.models.experts import active_fraction

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Floating-point operations of training a model.

    block_token: per token in the blocks. head_token: per token in the output head.
    attention_token: per token of a row of T tokens, divided by T, in layers that attend to the whole row.
    windowed_token: the same in layers with a window of `window` tokens.
    block_forward, head_forward: the part of block_token and head_token that the forward pass takes.
    """

    block_token: int
    head_token: int
    attention_token: int
    windowed_token: int = 0
    window: int = 0
    block_forward: int = 0
    head_forward: int = 0

    def of_rows(self, lengths: Sequence[int], *, projected: int) -> float:
        """Operations of a step. lengths: tokens of each row. projected: tokens that pass through the head."""
        # Half of T^2 pairs; with a window, only pairs closer than W.
        attention = sum(self.attention_token * length**2 for length in lengths)
        attention += sum(
            self.windowed_token * (length**2 - max(0, length - self.window) ** 2)
            for length in lengths
            if self.windowed_token
        )
        return self.block_token * sum(lengths) + attention + self.head_token * projected

    def of_forward(self, lengths: Sequence[int], *, projected: int) -> float:
        """Operations of a forward pass without a backward pass."""
        forward = dataclasses.replace(
            self,
            block_token=self.block_forward,
            head_token=self.head_forward,
            attention_token=self.attention_token // 3,
            windowed_token=self.windowed_token // 3,
        )
        return forward.of_rows(lengths, projected=projected)


def arithmetic_of(model: PreTrainedModel) -> Arithmetic:
    """Operations of training a model, which must not be sharded yet."""
    config = model.config.get_text_config(decoder=True)
    outside = [model.get_input_embeddings(), model.get_output_embeddings()]
    apart = {id(p) for module in outside if module is not None for p in module.parameters()}
    blocks = [
        (round(p.numel() * active_fraction(model.config, name=name, weight=p)), p.requires_grad)
        for name, p in model.named_parameters()
        if p.ndim in (2, 3) and id(p) not in apart  # three axes: stacked experts, and convolutions over positions
    ]
    held, trained = sum(active for active, _ in blocks), sum(active for active, trained in blocks if trained)
    head = model.get_output_embeddings()
    assert head is not None
    weight: torch.Tensor = head.weight  # type: ignore[assignment]
    heads = getattr(config, "num_attention_heads", None) or 0
    width = (getattr(config, "head_dim", None) or config.hidden_size // heads) * heads if heads else 0
    whole, windowed = attention_layers(model.config)
    return Arithmetic(
        block_token=4 * held + 2 * trained,
        head_token=(6 if weight.requires_grad else 4) * weight.numel(),
        attention_token=6 * whole * width,
        block_forward=2 * held,
        head_forward=2 * weight.numel(),
        windowed_token=6 * windowed * width,
        window=window(model.config) or 0,
    )


def matmul_rate(device: torch.device, *, mixed: bool, seconds: float = 0.2) -> float:
    """Operations per second of large matrix products on `device`: bfloat16 if training is mixed, else float32."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if mixed else torch.float32)
    out = a @ a
    _wait(device)
    products: list[Callable[[], object]] = [lambda: torch.mm(a, a, out=out)]
    products += [partial(product, a, a) for product in kernels.products(device, dtype=a.dtype)]
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        for multiply in products:
            started = time.perf_counter()
            multiply()
            _wait(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
