"""How much arithmetic a training step is, and how much of it a device could do: the two sides of MFU.

    forward            2 N a token, N = weights of matrix products in the blocks that the token passes through: of a mixture of
                       experts those it is sent to
    backward           2 N for the gradient of the inputs, 2 N_trained for that of the weights
    attention          scores and mixing, causal: 2 L h T a token forward, twice that backward; T = length of the row, in layers
                       that see a window of W tokens what the window leaves of it; h = heads times their width, of the queries
    recurrent layers   their projections and convolutions are among N; what the state itself costs is left out
    head               as the blocks, but for projected tokens only

Padding counts as nothing and recomputation (gradient checkpointing) is no progress, so both lower the fraction.
MFU = arithmetic of a step / (its time * measured rate of matrix products).
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
    """Floating-point operations of training a model: a token through the blocks, a token through the head, and a token
    of a row of T tokens in attention, divided by T: in layers that see all of it, and in those that see `window` tokens.
    block_forward, head_forward: what of it is the forward pass."""

    block_token: int
    head_token: int
    attention_token: int
    windowed_token: int = 0
    window: int = 0
    block_forward: int = 0
    head_forward: int = 0

    def of_rows(self, lengths: Sequence[int], *, projected: int) -> float:
        """lengths: tokens of each row. projected: tokens that reach the vocabulary."""
        # Half of T^2 pairs; of windows what is nearer than W.
        attention = sum(self.attention_token * length**2 for length in lengths)
        attention += sum(
            self.windowed_token * (length**2 - max(0, length - self.window) ** 2)
            for length in lengths
            if self.windowed_token
        )
        return self.block_token * sum(lengths) + attention + self.head_token * projected

    def of_forward(self, lengths: Sequence[int], *, projected: int) -> float:
        """Of a forward pass without a backward one."""
        forward = dataclasses.replace(
            self,
            block_token=self.block_forward,
            head_token=self.head_forward,
            attention_token=self.attention_token // 3,
            windowed_token=self.windowed_token // 3,
        )
        return forward.of_rows(lengths, projected=projected)


def arithmetic_of(model: PreTrainedModel) -> Arithmetic:
    """Of a model that is not sharded yet."""
    config = model.config.get_text_config(decoder=True)
    outside = [model.get_input_embeddings(), model.get_output_embeddings()]
    apart = {id(p) for module in outside if module is not None for p in module.parameters()}
    blocks = [
        (round(p.numel() * active_fraction(model.config, name=name, weight=p)), p.requires_grad)
        for name, p in model.named_parameters()
        if p.ndim in (2, 3) and id(p) not in apart  # three axes: stacked experts, and convolutions along a row
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
    """Operations a second of large matrix products on `device`: float32, or bfloat16 where training is mixed."""
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
