"""Sharded checkpoints: every rank writes its part, into a folder in the format of torch.distributed.checkpoint.

    step-00000012.ckpt/
        __0_0.distcp, __1_0.distcp, ...   shards of weights and optimizer state, one file per rank
        .metadata                         location of each shard, so that any number of ranks can read them
        facts.pt                          the rest of Lightning's checkpoint, plain values
        SHA256SUMS                        of all these files, for `sha256sum -c`; written last

The folder is written under a temporary name and renamed when all ranks are done, so it is complete or absent. A single process
reads it as the content of the single-file checkpoint of the same training (`read_folder`).
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from cft.files import replace_folder, sha256_file, temporary_beside, write_atomically, write_bytes, writing_errors
from cft.models.export import SUMS

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import ProcessGroup
    from torch.optim import Optimizer

FACTS = "facts.pt"
INDEX = ".metadata"  # torch's name
_WEIGHTS = "state_dict"
_GROUPS = "optimizer_groups"


@runtime_checkable
class WritesShards(Protocol):
    """A strategy that can write sharded checkpoints."""

    def write_checkpoints(self, *, sharded: bool, asynchronous: bool) -> None: ...

    def finish_checkpoint(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Shards:
    """The part of a checkpoint that this rank writes.

    Args:
        tensors: name of a part of the checkpoint -> its sharded state dict.
        facts: plain values, equal on all ranks.
    """

    tensors: dict[str, Any]
    facts: dict[str, Any]


def shards_of(checkpoint: dict[str, Any]) -> Shards:
    """This rank's part of a Lightning checkpoint with sharded state dicts; optimizer states are keyed by weight name."""
    facts = {k: v for k, v in checkpoint.items() if k not in (_WEIGHTS, "optimizer_states")}
    states = checkpoint.get("optimizer_states")
    if states is not None:  # groups are not tensors: torch would pickle them into the shards
        facts[_GROUPS] = [state["param_groups"] for state in states]
    optimizers = {f"optimizer_{i}": state["state"] for i, state in enumerate(states or ())}
    return Shards({_WEIGHTS: checkpoint[_WEIGHTS], **{k: v for k, v in optimizers.items() if v}}, facts)


def copy_of(shards: Shards) -> Shards:
    """A copy whose tensors the next optimizer step does not change."""
    return Shards(_copied(shards.tensors), shards.facts)


def _copied(value: Any) -> Any:
    from torch import Tensor

    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return value.detach().clone() if isinstance(value, Tensor) else value


def write_folder(path: Path, shards: Shards, *, group: ProcessGroup) -> None:
    """Write a sharded checkpoint. Collective over `group`; all ranks must share a file system.

    Raises:
        WriteError: some rank cannot write; raised on every rank.
    """
    import torch.distributed as dist

    rank = dist.get_rank(group)
    name: list[Any] = [str(temporary_beside(path))]  # the name of rank 0, whose process id identifies leftovers
    dist.broadcast_object_list(name, src=0, group=group)
    temporary = Path(name[0])
    try:
        _on_all_ranks(lambda: temporary.mkdir(parents=True, exist_ok=True), path=path, group=group)
        with writing_errors(path):
            _save(temporary, shards, group=group)
        found = _on_all_ranks(lambda: _written_sums(temporary, shards, rank=rank), path=path, group=group)
        sums = {file: sum for part in found for file, sum in part.items()}
        _on_all_ranks(lambda: _publish(temporary, path, sums) if rank == 0 else None, path=path, group=group)
    finally:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)


def _on_all_ranks(work: Callable[[], Any], *, path: Path, group: ProcessGroup) -> list[Any]:
    """The results of `work` by rank; if it fails on a rank, all ranks raise that rank's error."""
    import torch.distributed as dist

    result, error = None, None
    try:
        with writing_errors(path):
            result = work()
    except Exception as caught:  # noqa: BLE001 - after any error, the other ranks must not wait for this one
        error = caught
    everywhere: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everywhere, (result, error), group=group)
    for _, failed in everywhere:
        if failed is not None:
            raise failed
    return [found for found, _ in everywhere]


def _save(temporary: Path, shards: Shards, *, group: ProcessGroup) -> None:
    """Write the shards. If one rank fails, torch raises an error on all ranks."""
    import torch.distributed.checkpoint as dcp

    try:
        dcp.save(shards.tensors, storage_writer=dcp.FileSystemWriter(temporary), process_group=group)
    except dcp.CheckpointException as failed:  # not an Exception: callers would not recognize, e.g., a full disk
        raise next(iter(failed.failures.values()))[0] from failed


def _written_sums(temporary: Path, shards: Shards, *, rank: int) -> dict[str, str]:
    """File -> SHA-256 of the files that this rank wrote; rank 0 also writes the facts here."""
    import torch

    own = list(temporary.glob(f"__{rank}_*.distcp"))
    if rank == 0:

        def write(file: Path) -> None:
            with file.open("wb") as handle:
                torch.save(shards.facts, handle)

        write_atomically(temporary / FACTS, write)
        own += [temporary / FACTS, temporary / INDEX]
    return {file.name: sha256_file(file) for file in own}


def _publish(temporary: Path, path: Path, sums: dict[str, str]) -> None:
    write_bytes(temporary / SUMS, "".join(f"{sum}  {name}\n" for name, sum in sorted(sums.items())).encode())
    if path.is_file():
        path.unlink()
    replace_folder(temporary, path)


def damage_of_folder(path: Path) -> str:
    """Description of the folder's damage; "" if all files match their checksums."""
    sums = path / SUMS
    if not sums.is_file():
        return f"it has no {SUMS}, so it was not written completely"
    lines = [line.partition("  ") for line in sums.read_text(encoding="utf-8", errors="replace").splitlines()]
    named = {Path(name).name: expected for expected, _, name in lines}
    if missing := {FACTS, INDEX} - named.keys():
        return f"{SUMS} does not name {min(missing)}"
    for name, expected in named.items():
        try:
            if sha256_file(path / name) != expected:
                return f"part {name} does not match its SHA-256"
        except OSError as error:
            return f"part {name} cannot be read: {error.strerror}"
    return ""


def read_facts(path: Path) -> dict[str, Any]:
    """The content of a verified folder without weights and optimizer states."""
    import torch

    return torch.load(path / FACTS, weights_only=True, map_location="cpu")


def read_folder(path: Path) -> dict[str, Any]:
    """The content of the checkpoint, in a single process, equal to that of the single-file checkpoint."""
    import torch.distributed.checkpoint as dcp

    checkpoint = read_facts(path)
    reader = dcp.FileSystemReader(path)
    index = reader.read_metadata()
    flat = {name: _empty(entry) for name, entry in index.state_dict_metadata.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(flat, storage_reader=reader, no_dist=True)
    places = index.planner_data
    parts: dict[str, Any] = {}
    for name, value in flat.items():
        *above, last = places[name]
        part = parts
        for key in above:
            part = part.setdefault(key, {})
        part[last] = value
    checkpoint[_WEIGHTS] = parts[_WEIGHTS]
    if (groups := checkpoint.pop(_GROUPS, None)) is not None:
        states = [parts.get(f"optimizer_{i}", {}) for i in range(len(groups))]
        checkpoint["optimizer_states"] = [numbered(s, g) for s, g in zip(states, groups, strict=True)]
    return checkpoint


def _empty(entry: Any) -> Any:
    import torch

    return torch.empty(entry.size, dtype=entry.properties.dtype) if hasattr(entry, "properties") else None


def numbered(state: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Optimizer state with weights numbered in the order of the groups, torch's form without sharding."""
    number = {name: i for i, name in enumerate(name for group in groups for name in group["params"])}
    return {
        "state": {number[name]: values for name, values in state.items()},
        "param_groups": [{**group, "params": [number[name] for name in group["params"]]} for group in groups],
    }


def load_folder(path: Path, model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Any]:
    """Read weights and optimizer states into a sharded model; each rank reads its own shards. Collective.

    Returns:
        The rest of the checkpoint, with the loaded weights.

    Raises:
        RuntimeError: the weights in the checkpoint are not those that are trained.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        get_model_state_dict,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    checkpoint = read_facts(path)
    saved = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    whole = get_model_state_dict(model)
    weights = {name: tensor for name, tensor in whole.items() if f"{_WEIGHTS}.{name}" in saved}
    named = {name.removeprefix(f"{_WEIGHTS}.") for name in saved if name.startswith(f"{_WEIGHTS}.")}
    if differing := (named - weights.keys()) | ((trained & whole.keys()) - weights.keys()):
        raise RuntimeError(f"{path}: its weights are not those trained here; they differ in {sorted(differing)[:6]}")
    dcp.load({_WEIGHTS: weights}, checkpoint_id=path)  # in place, since these are the model's own shards
    for i, (optimizer, groups) in enumerate(zip(optimizers, checkpoint.pop(_GROUPS, ()), strict=False)):
        state = {f"optimizer_{i}": get_optimizer_state_dict(model, optimizer)["state"]}
        if state[f"optimizer_{i}"]:
            dcp.load(state, checkpoint_id=path)
        found: Any = {"state": state[f"optimizer_{i}"], "param_groups": groups}
        set_optimizer_state_dict(model, optimizer, optim_state_dict=found)
    return {**checkpoint, _WEIGHTS: weights}


def load_whole(checkpoint: dict[str, Any], model: nn.Module, optimizers: Iterable[Optimizer], *, strict: bool) -> None:
    """Load the content of a single-file checkpoint, on rank 0, into a sharded model. Collective.

    Lightning's own loading includes frozen weights in the optimizer's numbering.
    """
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=strict)
    set_model_state_dict(model, dict(checkpoint[_WEIGHTS]), options=whole)  # a copy, since torch adds entries
    name_of = {weight: name for name, weight in model.named_parameters()}
    for optimizer, saved in zip(optimizers, checkpoint["optimizer_states"], strict=True):
        names = [name_of[weight] for group in optimizer.param_groups for weight in group["params"]]
        groups = [{**group, "params": [names[i] for i in group["params"]]} for group in saved["param_groups"]]
        named: Any = {"state": {names[i]: values for i, values in saved["state"].items()}, "param_groups": groups}
        set_optimizer_state_dict(model, optimizer, optim_state_dict=named, options=whole)
