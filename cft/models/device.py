"""Device of a model, and number of CPU threads.

Matrix products of a model with a million parameters are too small for several threads: on two idle cores two threads gave 1.2
times the tokens/s of one, and on two busy cores under a tenth (docs/experiments/threads.md), since OpenMP threads spin while
they wait for each other.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from cft.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")  # values of a `device` key
TF32_OVERRIDE = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"  # NVIDIA's containers set it to 1
CPU_KEYS_MB, GPU_KEYS_FRACTION = 4096, 0.75
SMALL_MODEL_PARAMETERS = 10_000_000


class DeviceError(UserError, ValueError):
    """The requested device is not available."""


def place(model: PreTrainedModel, *, device: str, shard: int = 0, num_shards: int = 1) -> None:
    """Move the model to a device.

    On the CPU, freed memory is kept for the next tensor, and a model of fewer than 10 million parameters gets one thread;
    otherwise torch's own number of threads is kept (OMP_NUM_THREADS).

    Args:
        model: The model.
        device: auto, cpu, cuda or cuda:N. auto: a CUDA device if there is one, else the CPU; with several CUDA devices, shards
            are assigned to them in turn.
        shard: Number of this shard.
        num_shards: Number of shards.

    Raises:
        DeviceError: The device is not available.
    """
    import torch

    from cft.models.kernels import keep_freed_memory

    chosen = chosen_device(device, shard=shard, num_shards=num_shards)
    use_exact_float32()
    use_steady_attention()
    if model.device.type != "meta":  # a meta model has no weights yet
        torch.nn.Module.to(model, chosen)
    if chosen == "cpu":
        keep_freed_memory()
    if chosen == "cpu" and model.num_parameters() < SMALL_MODEL_PARAMETERS:
        torch.set_num_threads(1)


def chosen_device(device: str, *, shard: int = 0, num_shards: int = 1) -> str:
    """The device that a `device` key selects on this machine, "cpu" or "cuda:N". Raises DeviceError."""
    import torch

    if not DEVICE.fullmatch(device):
        raise DeviceError(f"device={device}: expected auto, cpu, cuda, or a numbered device such as cuda:1")
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
    """Disable TensorFloat-32, which keeps 10 bits: ties, layouts and engines are compared at a much higher precision. Also
    applies to child processes."""
    import torch

    os.environ.pop(TF32_OVERRIDE, None)
    torch.set_float32_matmul_precision("highest")


def use_steady_attention() -> None:
    """Disable cuDNN in SDPA: it builds a plan for every new row length, half a second each for forward and backward. 60 steps
    of a small model on an H100 took 107 s in bfloat16, and 4 s in float32, where cuDNN is not used."""
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def device_facts(device: torch.device) -> dict[str, str]:
    """Facts about a device that can change near ties, for fingerprints."""
    import torch

    if device.type != "cuda":
        return {"device": device.type}
    precision = torch.get_float32_matmul_precision()
    return {"device": "cuda", "gpu": torch.cuda.get_device_name(device), "float32_matmul_precision": precision}


def memory_for_keys(device: torch.device, *, megabytes: int | None) -> int:
    """Memory budget of the KV cache in bytes.

    Args:
        device: Where the engine decodes.
        megabytes: The configured budget. None: 3/4 of the memory that is free after the weights on a GPU (the rest is for the
            tensors of a step and for fragmentation); 4096 MB on a CPU.
    """
    import torch

    if megabytes is not None:
        return megabytes * 10**6
    if device.type != "cuda":
        return CPU_KEYS_MB * 10**6
    return int(GPU_KEYS_FRACTION * torch.cuda.mem_get_info(device)[0])
