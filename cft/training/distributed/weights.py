"""Weights are read from disk by the first process alone. The others make their model without any (`empty` of
`load_causal_lm`) and get them block by block, just before a block is shared out.

So a node's host memory holds them once however many processes it has, other nodes' not at all, and all processes train the
same model whatever lies on their disks. torch's own way (share out an empty model, then `set_model_state_dict` with
`broadcast_from_rank0`) fills neither buffers that no state dict has, such as rotary frequencies, nor keeps tied weights one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn


class OtherModel(RuntimeError):
    """The processes of a run have made models of other parts; nothing was trained."""


def is_first() -> bool:
    """Of the processes of a distributed run, before they know of each other."""
    return getattr(rank_zero_only, "rank", 0) == 0  # Lightning sets it from the environment


def is_empty(module: nn.Module) -> bool:
    """Whether its weights are still to come."""
    return any(parameter.is_meta for parameter in module.parameters())


@dataclass(slots=True)
class _Part:
    """A weight or buffer. places: where it is held: of a tied weight several."""

    name: str
    tensor: Tensor  # held, or its id could become another one's
    dtype: torch.dtype
    places: list[tuple[dict[str, Tensor | None], str]] = field(default_factory=list)


class FirstRanksWeights:
    """Gives a model the first rank's weights and buffers, part by part. Collective: making one, and each `fill`.

    device: where they are computed with.

    Raises:
        OtherModel: on a rank whose model has other parts than the first one's.
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
                f"rank {dist.get_rank()}: its model has other parts than the first rank's, such as {differing[:2]}; model.path "
                "must lead to the same files, and packages must have the same versions, on every machine"
            )
        for part, (_, _, dtype) in zip(parts, firsts, strict=True):
            part.dtype = dtype  # transformers keeps some weights of some models in float32

    def fill(self, module: nn.Module) -> None:
        """All of a part of the model that has not come yet. Every rank in the same order."""
        for _, tensor, _ in [*_tensors(module)]:
            part = self._missing.pop(id(tensor), None)
            if part is None:
                continue  # it came with another part
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
    """Weights and buffers under each of their names, with where they are held."""
    for prefix, owner in module.named_modules():
        for held in (owner._parameters, owner._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    yield f"{prefix}.{name}".lstrip("."), tensor, (held, name)  # type: ignore[misc]
