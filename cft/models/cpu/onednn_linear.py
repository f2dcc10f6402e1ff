"""Linear layers whose float32 matrix products, forward and backward, use oneDNN instead of torch's BLAS.

The result differs only by rounding. On processors for which the BLAS has no specialized kernel, such as AMD processors with
AVX-512, this more than doubles the training speed (`make bench-train`, `matmul_gflops` and `onednn_matmul_gflops`). Nothing is
packed or copied except one transposed gradient. Passes in inference mode use torch's own product, so that engines choose the
same tokens as before.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from cft.models.cpu.gradient_in_place import accumulated_gradient
from cft.models.rounding import half_of_the_digits

MIN_WEIGHTS = 65_536  # in a smaller layer the call costs more than the product
BLOCK = 8192  # rows of a large weight per block, when its gradient is added in place
_RECOMPUTABLE = "_cft_recomputable"  # attribute of a tensor, see mark_recomputable


class OneDnnLinear(nn.Linear):
    """An nn.Linear, converted by assigning its `__class__`: weights, names, hooks and copies are unaffected."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if input.numel() and weight.dtype == torch.float32 and kernels_enabled(input):
            return _Product.apply(input, weight, self.bias, *_recomputable_from(input))
        return linear(input, weight, self.bias)


def mark_recomputable(y: Tensor, source: Tensor, scale: Tensor, factor: Tensor) -> None:
    """Declare y = source * scale * factor; layers that read y then recompute it in their backward pass."""
    if y.requires_grad:  # without a backward pass nothing is saved, and inference tensors have no version
        setattr(y, _RECOMPUTABLE, (y._version, source, scale, factor))


def _recomputable_from(x: Tensor) -> tuple[Tensor | None, ...]:
    version, *recomputable_from = getattr(x, _RECOMPUTABLE, (None, None, None, None))
    if version is None or version != x._version:  # changed in place since, for example by a hook
        return None, None, None
    return tuple(recomputable_from)


_inside: ContextVar[bool] = ContextVar("inside a training or validation pass", default=False)


@contextmanager
def training_pass() -> Iterator[None]:
    """Context of passes of the training stage, including validation losses, which Lightning computes in inference mode."""
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


def kernels_enabled(x: Tensor) -> bool:
    """Whether the kernels of this package compute on x, or torch's own: in float32 on a CPU, and not for engines, which
    work in inference mode."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and (_inside.get() or not torch.is_inference_mode_enabled())
        and not torch.is_autocast_enabled("cpu")
    )


class _Product(torch.autograd.Function):
    """Linear layer. If source, scale and factor are given, x = source * scale * factor is recomputed instead of saved."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        source: Tensor | None,
        scale: Tensor | None,
        factor: Tensor | None,
    ) -> Tensor:
        ctx.parameter = weight  # a checkpointed chunk unpacks a copy of it, whose .grad is not used
        ctx.save_for_backward(weight, *((x,) if source is None else (source, scale, factor)))
        flat_Nd = x.reshape(-1, x.shape[-1])
        return product(flat_Nd, weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, x, *recomputable_from = ctx.saved_tensors
        gradient_Ne = gradient.reshape(-1, gradient.shape[-1])
        of_x = product(gradient_Ne, weight.t()).view_as(x) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            if recomputable_from:
                scale, factor = recomputable_from
                x = (x * scale).mul_(factor)
            of_weight = gradient_of_weight(ctx.parameter, gradient_Ne, x.reshape(-1, x.shape[-1]))
        of_bias = gradient_Ne.sum(0) if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias, None, None, None


def product(x_Nd: Tensor, weight_ed: Tensor, bias_e: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias; a weight that is a transposed view is not copied."""
    rows, (outputs, inputs) = len(x_Nd), weight_ed.shape
    if rows == (whole := steps_up(rows)):
        return _onednn(x_Nd, weight_ed, bias_e)
    if inputs <= outputs:
        padded_Md = x_Nd.new_zeros(whole, inputs)
        padded_Md[:rows] = x_Nd
        return _onednn(padded_Md, weight_ed, bias_e)[:rows]
    whole = steps_down(rows)
    rest = linear(x_Nd[whole:], weight_ed, bias_e)
    return torch.cat([_onednn(x_Nd[:whole], weight_ed, bias_e), rest]) if whole else rest


def gradient_of_weight(weight_ed: Tensor, gradient_Ne: Tensor, x_Nd: Tensor) -> Tensor | None:
    """gradient.T @ x: [e, d], or None if it was added to `weight.grad` (see `cft/models/cpu/gradient_in_place.py`)."""
    accumulated_ed = accumulated_gradient(weight_ed)
    if accumulated_ed is None:
        return _outer(gradient_Ne, x_Nd)
    blocks = zip(accumulated_ed.split(BLOCK), gradient_Ne.split(BLOCK, dim=1), strict=True)
    for accumulated_bd, gradient_Nb in blocks:
        accumulated_bd += _outer(gradient_Nb, x_Nd)
    return None


def _outer(gradient_Ne: Tensor, x_Nd: Tensor) -> Tensor:
    whole = steps_down(len(x_Nd))
    if not whole:
        return gradient_Ne.t() @ x_Nd
    made_ed = _onednn(gradient_Ne[:whole].t(), x_Nd[:whole].t())
    return made_ed if whole == len(x_Nd) else made_ed.addmm_(gradient_Ne[whole:].t(), x_Nd[whole:])


def steps_up(rows: int) -> int:
    """Round a number of rows up to one of 16 sizes between powers of two, in steps of at least 32.

    oneDNN generates and caches code for every shape, 0.6 MB and a few milliseconds each, about 15 shapes per batch length.
    Without rounding, training would keep generating code."""
    return -(-rows // _step(rows)) * _step(rows)


def steps_down(rows: int) -> int:
    return rows // _step(rows) * _step(rows)


def _step(rows: int) -> int:
    return max(32, 1 << (rows - 1).bit_length() >> 5) if rows else 32


def _onednn(x_Nd: Tensor, weight_ed: Tensor, bias_e: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x_Nd, weight_ed, bias_e, "none", [], "")


def use_onednn(model: nn.Module) -> int:
    """Convert the model's linear layers to `OneDnnLinear`; returns their number, 0 if oneDNN is missing or incorrect."""
    if not available():
        return 0
    layers = [m for m in model.modules() if type(m) is nn.Linear and m.weight.numel() >= MIN_WEIGHTS]
    for layer in layers:
        layer.__class__ = OneDnnLinear
    return len(layers)


@torch.inference_mode(False)
@torch.enable_grad()
def available() -> bool:
    """Whether the private torch operators exist and still compute what is expected."""
    if not torch.backends.mkldnn.is_available() or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    x_Nd = torch.linspace(-1, 1, 5 * 24).view(5, 24).requires_grad_()
    weight_ed = torch.linspace(1, -1, 40 * 24).view(40, 24).sin().requires_grad_()
    try:
        found = torch.autograd.grad(
            _Product.apply(x_Nd, weight_ed, None, None, None, None).square().sum(), (x_Nd, weight_ed)
        )
    except (AttributeError, RuntimeError):  # the operator no longer exists, or takes other arguments
        return False
    expected = torch.autograd.grad(linear(x_Nd, weight_ed).square().sum(), (x_Nd, weight_ed))
    return all(
        bool((f - e).abs().max() <= half_of_the_digits(torch.float32) * e.abs().max())
        for f, e in zip(found, expected, strict=True)
    )
