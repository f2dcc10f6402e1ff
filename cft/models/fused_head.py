"""log p of the target tokens from hidden states without materializing all logits, with torch's fused loss, on a GPU in float32.

    torch   linear_cross_entropy(reduction="none") of torch.nn.functional (from the release that has
            torch.nn.LinearCrossEntropyOptions): logits of one chunk at a time, recomputed in the backward pass, where each
            token's gradient is applied before summing over tokens. So the gradient is correct for any function of log p with
            any weight per token, and equals that of the unfused computation up to rounding.

Not used:

    a sum or mean of losses   does not support token weights: its gradient is computed in the forward pass, for weight 1
    half precision, autocast  linear_cross_entropy returns log p in the precision of its input: 8 bits in bfloat16, while the
                              unfused computation returns float32, from which weights such as p_t and losses such as 1 - p_t
                              are computed
    Liger                     LigerFusedLinearCrossEntropy(reduction="none") silently multiplied all tokens by the gradient of
                              the first, until linkedin/Liger-Kernel pull request 1298; its sum does not support token weights
    scaled logits             Gemma's cap, Cohere's and Granite's factor: these functions do not support them
    a CPU                     has kernels in `cft/models/cpu/`
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cft.models.head import scales_logits
from cft.models.log_probs import log_probs
from cft.models.rounding import half_of_the_digits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEVICES = ("cuda",)


def has_fused_head(model: PreTrainedModel, hidden_ND: Tensor) -> bool:
    """Whether `fused_log_probs` supports these states, with the same result as the log-softmax of the head's logits."""
    head = model.get_output_embeddings()
    return (
        hidden_ND.device.type in DEVICES
        and hidden_ND.dtype in (torch.float32, torch.float64)
        and len(hidden_ND) > 0
        and not torch.is_autocast_enabled(hidden_ND.device.type)
        and isinstance(head, nn.Linear)
        and type(head.weight) in (nn.Parameter, Tensor)  # neither quantized nor sharded
        and head.weight.dtype == hidden_ND.dtype
        and not scales_logits(model)
        and _right(hidden_ND.device)
    )


def fused_log_probs(model: PreTrainedModel, hidden_ND: Tensor, target_N: Tensor, *, chunk_tokens: int) -> Tensor:
    """[N] log p of the targets in nats, differentiable. Logits are computed for at most chunk_tokens tokens at a time."""
    head: Any = model.get_output_embeddings()
    return _fused(hidden_ND, head.weight, target_N, head.bias, chunk_tokens=chunk_tokens)


def _fused(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, bias_V: Tensor | None, *, chunk_tokens: int
) -> Tensor:
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=chunk_tokens)
    return -functional.linear_cross_entropy(
        hidden_ND, weight_VD, target_N, linear_bias=bias_V, reduction="none", options=options
    )


@cache
@torch.inference_mode(False)
@torch.enable_grad()
def _right(device: torch.device) -> bool:
    """Whether this version of torch has the function, with correct gradients for tokens of different weights."""
    hidden_ND = torch.linspace(-2, 2, 5 * 8, device=device).view(5, 8).sin().requires_grad_()
    weight_VD = torch.linspace(3, -3, 12 * 8, device=device).view(12, 8).cos().requires_grad_()
    target_N, weight_N = torch.arange(5, device=device), torch.arange(5, device=device) - 1.5
    inputs = (hidden_ND, weight_VD)
    try:
        found_N = _fused(hidden_ND, weight_VD, target_N, None, chunk_tokens=2)
        found = found_N, *torch.autograd.grad((found_N.exp() * weight_N).sum(), inputs)
    except (AttributeError, TypeError, RuntimeError):  # the function does not exist yet, or takes other arguments
        return False
    expected_N = log_probs(hidden_ND @ weight_VD.t()).gather(1, target_N[:, None])[:, 0]
    expected = expected_N, *torch.autograd.grad((expected_N.exp() * weight_N).sum(), inputs)
    return all(
        bool((f - e).abs().max() <= half_of_the_digits(torch.float32) * e.abs().max())
        for f, e in zip(found, expected, strict=True)
    )
