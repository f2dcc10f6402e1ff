"""Where a model runs, and on how many CPU threads.

Matrix products of a model of a million parameters are too small to share: on two idle cores two threads gave 1.2 times
the tokens/s of one, and on two busy cores under a tenth (docs/experiments/threads.md), since OpenMP threads spin while they
wait for each other.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from cft.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")  # what a `device` key may say
TF32_OVERRIDE = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"  # NVIDIA's containers set it to 1
CPU_KEYS_MB, GPU_KEYS_FRACTION = 4096, 0.75
SMALL_MODEL_PARAMETERS = 10_000_000


class DeviceError(UserError, ValueError):
    """The requested device is not there."""


def place(model: PreTrainedModel, *, device: str, shard: int = 0, num_shards: int = 1) -> None:
    """Move the model to auto, cpu, cuda or cuda:N. auto: a CUDA device where there is one, else the CPU; of several CUDA
    devices each of several shards takes one in turn. On the CPU freed memory is kept for the next tensor, and a small model
    gets one thread; for others torch's own choice is kept (OMP_NUM_THREADS). Raises DeviceError."""
    import torch

    from cft.models.kernels import keep_freed_memory

    chosen = chosen_device(device, shard=shard, num_shards=num_shards)
    use_exact_float32()
    use_steady_attention()
    if model.device.type != "meta":  # weights that are still to come
        torch.nn.Module.to(model, chosen)
    if chosen == "cpu":
        keep_freed_memory()
    if chosen == "cpu" and model.num_parameters() < SMALL_MODEL_PARAMETERS:
        torch.set_num_threads(1)


def chosen_device(device: str, *, shard: int = 0, num_shards: int = 1) -> str:
    """The device that a `device` key means here, "cpu" or "cuda:N". Raises DeviceError."""
    import torch

    if not DEVICE.fullmatch(device):
        raise DeviceError(f"device={device}: expected auto, cpu, cuda, or one of several as cuda:1")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not count):
        return "cpu"
    if not count:
        raise DeviceError(
            f"device={device}: torch sees no CUDA device; use device=auto or device=cpu, or install a CUDA build"
        )
    if ":" not in device:
        return f"cuda:{shard % count if device == 'auto' and num_shards > 1 else torch.cuda.current_device()}"
    if (number := int(device.partition(":")[2])) >= count:
        raise DeviceError(
            f"device={device}: torch sees {count} CUDA devices, cuda:0 to cuda:{count - 1}, not cuda:{number}"
        )
    return device


def use_exact_float32() -> None:
    """Float32 products without TensorFloat-32, which keeps 10 bits: ties, layouts and engines are compared far below that.
    For the processes that this one starts, too."""
    import torch

    os.environ.pop(TF32_OVERRIDE, None)
    torch.set_float32_matmul_precision("highest")


def use_steady_attention() -> None:
    """SDPA without cuDNN, which builds a plan for every new length of a row, half a second each way: 60 steps of a small model
    on an H100 took 107 s in bfloat16 and 4 s in float32, where it has no part."""
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def device_facts(device: torch.device) -> dict[str, str]:
    """What of a device can turn a near tie: for fingerprints."""
    import torch

    if device.type != "cuda":
        return {"device": device.type}
    precision = torch.get_float32_matmul_precision()
    return {"device": "cuda", "gpu": torch.cuda.get_device_name(device), "float32_matmul_precision": precision}


def memory_for_keys(device: torch.device, *, megabytes: int | None) -> int:
    """Bytes that an engine may fill with keys and values. None: on a GPU three quarters of what is free beside the
    weights (the rest is for a step's own tensors and for what the allocator loses between odd sizes); on a CPU 4096 MB."""
    import torch

    if megabytes is not None:
        return megabytes * 10**6
    if device.type != "cuda":
        return CPU_KEYS_MB * 10**6
    return int(GPU_KEYS_FRACTION * torch.cuda.mem_get_info(device)[0])
