"""Two ranks build models from one folder, rank 1 without weights, and compare their weights with a plain load."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from cft.models.load import Lora, ModelSpec, load_causal_lm
from cft.training.distributed.sharding import shard, shard_frozen
from cft.training.distributed.weights import FirstRanksWeights, is_empty
from tests.architectures import FAMILIES


class Wrapper(nn.Module):
    """The part of `SelectiveLM` that is sharded."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits

    probe = forward


@contextmanager
def gloo() -> Iterator[int]:
    dist.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def compare(folders: list[Path]) -> None:
    """Each folder's model sharded (only its blocks, like a reference model, and all of it) and unsharded on each rank."""
    with gloo() as rank:
        for folder in folders:
            for lora in (None, Lora(r=2)):
                for how in ("whole", "shards", "frozen"):
                    _compare(spec_of(folder, lora=lora), how=how, rank=rank)


def spec_of(folder: Path, *, lora: Lora | None = None) -> ModelSpec:
    options: Any = {"attn_implementation": FAMILIES[folder.name].attention} if folder.name in FAMILIES else {}
    return ModelSpec(name=folder.name, path=str(folder), lora=lora, **options)


def _compare(spec: ModelSpec, *, how: str, rank: int) -> None:
    lm = Wrapper(load_causal_lm(spec, empty=rank > 0))
    assert is_empty(lm) == (rank > 0)
    arrived(lm, how=how)
    assert not is_empty(lm)
    expected = Wrapper(load_causal_lm(spec))
    assert len([*lm.parameters()]) == len([*expected.parameters()])  # tied ones are one
    assert [name for name, p in lm.named_parameters() if p.requires_grad] == [
        name for name, p in expected.named_parameters() if p.requires_grad
    ]
    for (name, found), (other, wanted) in zip(tensors(lm), tensors(expected), strict=True):
        assert (name, found.dtype) == (other, wanted.dtype), spec.name
        assert torch.equal(found, wanted), (spec.name, how, name)
    ids = torch.arange(3, 19).view(2, 8)
    with torch.no_grad():
        assert torch.equal(lm(ids), expected(ids)), (spec.name, how)


def arrived(lm: Wrapper, *, how: str) -> None:
    part = lm.model if how == "frozen" else lm
    weights = FirstRanksWeights(part, device=torch.device("cpu"))
    if how == "whole":
        weights.fill(lm)
        return
    mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    if how == "frozen":
        shard_frozen(lm.model, mesh, weights=weights)
    else:
        shard(lm, lm.model, mesh, weights=weights)


def tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return [(name, t.full_tensor() if isinstance(t, DTensor) else t) for name, t in named]


def refuse_another_model(folders: list[Path]) -> None:
    """The ranks have different models: rank 1 raises, and rank 0 does not wait for it forever."""
    with gloo() as rank:
        lm = Wrapper(load_causal_lm(spec_of(folders[rank]), empty=rank > 0))
        said = ""
        try:
            FirstRanksWeights(lm, device=torch.device("cpu"))
        except RuntimeError as error:
            said = str(error)
        assert bool(re.search(r"rank 1: its model differs from that of rank 0, such as in", said)) == (rank > 0)


def measure(folder: Path, out: Path) -> None:
    """Peak growth of each rank's memory in MB: if all ranks read the weights, and if only rank 0 reads them."""
    with gloo() as rank:
        for how, empty in (("read", False), ("arrived", rank > 0)):
            before = _memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
            lm = Wrapper(load_causal_lm(spec_of(folder), empty=empty))
            arrived(lm, how="shards")
            (out / f"{how}_{rank}").write_text(str(_memory("VmHWM") - before))
            del lm
            dist.barrier()


def _memory(of: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(of))
    return int(line.split()[1]) / 1024
