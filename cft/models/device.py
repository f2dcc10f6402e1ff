"""Where a model runs, and on how many CPU threads.

Matrix products of a model of a million parameters are too small to share: on two idle cores two threads gave 1.2 times
the tokens/s of one, and on two busy cores under a tenth (docs/experiments/threads.md), since OpenMP threads spin while they
wait for each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cft.errors import UserError
from cft.models.cpu.allocator import keep_freed_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Device = Literal["auto", "cpu", "cuda"]
SMALL_MODEL_PARAMETERS = 10_000_000


class DeviceError(UserError, ValueError):
    """The device asked for is not there."""


def place(model: PreTrainedModel, *, device: Device) -> None:
    """Move the model. auto: a CUDA device where there is one, else the CPU. On the CPU freed memory is kept for the next
    tensor, and a small model gets one thread; for others torch's own choice stands (OMP_NUM_THREADS). Raises DeviceError."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "device=cuda: torch sees no CUDA device; use device=auto or device=cpu, or install a CUDA build"
        )
    chosen = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    torch.nn.Module.to(model, chosen)
    if chosen == "cpu":
        keep_freed_memory()
    if chosen == "cpu" and model.num_parameters() < SMALL_MODEL_PARAMETERS:
        torch.set_num_threads(1)
