"""Distributes weights from rank 0, the only rank that reads them from disk.

The other ranks create their model without weights (`empty` of `load_causal_lm`) and receive them block by block, just before
each block is sharded. So only the host memory of the first node holds the weights, and only once, and all processes train the
same model regardless of the files on their disks. torch's own method (shard an empty model, then `set_model_state_dict` with
`broadcast_from_rank0`) does not fill non-persistent buffers, such as rotary frequencies, and does not keep tied weights tied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn


class OtherModel(RuntimeError):
    """The processes of a run created models with different weights or buffers; nothing was trained."""


def is_first() -> bool:
    """Whether this is rank 0 of a distributed run; works before the process group is initialized."""
    return getattr(rank_zero_only, "rank", 0) == 0  # Lightning sets it from the environment


def is_empty(module: nn.Module) -> bool:
    """Whether the module has no weights yet."""
    return any(parameter.is_meta for parameter in module.parameters())


@dataclass(slots=True)
class _Part:
    """A weight or buffer. places: the modules' dictionaries and names that hold it; several for a tied weight."""

    name: str
    tensor: Tensor  # kept alive, so that no other tensor gets its id
    dtype: torch.dtype
    places: list[tuple[dict[str, Tensor | None], str]] = field(default_factory=list)


class FirstRanksWeights:
    """Gives a model the weights and buffers of rank 0, part by part. The constructor and each `fill` are collective.

    Args:
        whole: the model; without weights on all ranks but rank 0.
        device: the device of the received weights.

    Raises:
        OtherModel: the model of this rank has other weights or buffers than that of rank 0.
    """

    def __init__(self, whole: nn.Module, *, device: torch.device) -> None:
        self.device = device
        self._missing: dict[int, _Part] = {}
        for name, tensor, place in _tensors(whole):
            part = self._missing.setdefault(id(tensor), _Part(name, tensor, tensor.dtype))
            part.places.append(place)
        parts = self._missing.values()
        sent = [[(part.name, tuple(part.tensor.shape), part.dtype) for part in parts]]
        dist.broadcast_object_list(sent, src=0)
        (firsts,) = sent
        found, wanted = {(part.name, tuple(part.tensor.shape)) for part in parts}, {(n, s) for n, s, _ in firsts}
        if differing := sorted(found ^ wanted):
            raise OtherModel(
                f"rank {dist.get_rank()}: its model differs from that of rank 0, such as in {differing[:2]}; model.path must "
                "contain the same files, and packages must have the same versions, on every machine"
            )
        for part, (_, _, dtype) in zip(parts, firsts, strict=True):
            part.dtype = dtype  # transformers keeps some weights of certain models in float32

    def fill(self, module: nn.Module) -> None:
        """Receive the weights and buffers of `module`, a part of the model, that are still missing.

        Every rank must call this for the same parts in the same order.
        """
        for _, tensor, _ in [*_tensors(module)]:
            part = self._missing.pop(id(tensor), None)
            if part is None:
                continue  # already received with another part
            here = self._received(part)
            if tensor.is_meta or not isinstance(tensor, nn.Parameter):
                new = nn.Parameter(here, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else here
                for held, name in part.places:
                    held[name] = new
            else:
                tensor.data = here

    def _received(self, part: _Part) -> Tensor:
        if dist.get_rank() == 0:
            here = part.tensor.detach().to(self.device).contiguous()
        else:
            here = torch.empty(part.tensor.shape, dtype=part.dtype, device=self.device)
        if here.numel():
            dist.broadcast(here, src=0)
        return here


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, tuple[dict[str, Tensor | None], str]]]:
    """Weights and buffers under each of their names: (name, tensor, (dictionary of the module, key))."""
    for prefix, owner in module.named_modules():
        for held in (owner._parameters, owner._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    yield f"{prefix}.{name}".lstrip("."), tensor, (held, name)  # type: ignore[misc]
