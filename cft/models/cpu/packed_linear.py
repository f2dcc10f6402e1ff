"""Linear layers with weights packed for the CPU's matrix kernel: the same float32 product, often twice as fast.

oneDNN multiplies by a weight that was reordered once. torch's own float32 product reorders it on every call, and on some
processors uses only half of the vector unit (measured: 190 against 430 GFLOP/s, `make bench-annotate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cft.models.cpu.onednn_linear import OneDnnLinear
from cft.models.rounding import half_of_the_digits

PACK_FOR_ROWS = 256  # the layout is tuned to this batch size, and correct for any


class PackedLinears:
    """Packed forms of the linear layers of `model`, if the machine and the dtype support it.

    Costs a second copy of these weights, which must not change afterwards. The model uses the packed forms within `active()`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._forwards: dict[nn.Linear, Callable[[Tensor], Tensor]] = {}
        if not torch.backends.mkldnn.is_available():
            return
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and type(layer) in (nn.Linear, OneDnnLinear) and _plain(layer.weight):
                self._forwards[layer] = _packed_forward(layer)
        if self._forwards and not _right(*next(iter(self._forwards.items()))):
            self._forwards = {}

    def __len__(self) -> int:
        return len(self._forwards)

    @contextmanager
    def active(self) -> Iterator[None]:
        for layer, forward in self._forwards.items():
            layer.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            for layer in self._forwards:
                del layer.forward  # restores the class's own forward


def _plain(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def _packed_forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), PACK_FOR_ROWS)
    bias = None if layer.bias is None else layer.bias.detach()

    def forward(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    return forward


@torch.inference_mode()
def _right(layer: nn.Linear, forward: Callable[[Tensor], Tensor]) -> bool:
    """Whether the private torch operators still compute what is expected."""
    x = torch.linspace(-1, 1, 3 * layer.in_features).reshape(3, -1)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    return bool((forward(x) - expected).abs().max() <= half_of_the_digits(torch.float32) * expected.abs().max())
