"""Training with weights, gradients and optimizer state sharded over the ranks: FSDP2, `trainer=fsdp`.

By default, Lightning's ModelParallelStrategy uses all processes of a machine for tensor parallelism. The data-parallel mesh
then has size 1, and gradients are silently not reduced. So both sizes are set here, and the mesh is tested at the start. The
blocks are sharded one by one, and the remaining weights with the wrapper whose forward contains backbone and head, so that
weights shared between them (tied embeddings) are gathered once.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from cft.errors import BadValue
from cft.models.export import plain_copy
from cft.ranges import AtLeastOne
from cft.training.checkpointing.checkpoints import read_checkpoint, remove
from cft.training.checkpointing.sharded import (
    copy_of,
    load_folder,
    load_whole,
    numbered,
    shards_of,
    write_folder,
)
from cft.training.lightning_internals import collect_shards, set_parallel_sizes

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

    from cft.training.distributed.weights import FirstRanksWeights


class ShardingError(RuntimeError):
    """The device mesh does not include all ranks; nothing was trained."""


class FullySharded(ModelParallelStrategy):
    """FSDP2 strategy in which all processes form one data-parallel group.

    Checkpoints are a folder of shards or a single file; any strategy can resume from either.

    Args:
        replicas: copies of the sharded model, each sharded over world_size / replicas consecutive processes.
    """

    def __init__(self, *, replicas: int = 1) -> None:
        super().__init__(save_distributed_checkpoint=True)
        self.replicas = replicas
        self.sharded, self.asynchronous = True, False
        self._group: Any = None  # process group of the checkpoint writers: separate from training's, on the CPU
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def setup_environment(self) -> None:
        set_parallel_sizes(self, data=self.num_nodes * self.num_processes, tensor=1)
        super().setup_environment()

    # ---- checkpoints

    def write_checkpoints(self, *, sharded: bool, asynchronous: bool) -> None:
        """Set the form of checkpoints.

        Args:
            sharded: whether every rank writes its own part; otherwise rank 0 writes everything.
            asynchronous: whether training continues during writing.
        """
        self.sharded, self.asynchronous = sharded, asynchronous
        collect_shards(self, own=sharded)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Optimizer state in the form that `load_whole` and other strategies read.

        Lightning's own numbering of the weights includes frozen ones.
        """
        if self.sharded:
            return super().optimizer_state(optimizer)
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        found: Any = get_optimizer_state_dict(self.model, optimizer, options=options)
        return numbered(found["state"], found["param_groups"]) if self.global_rank == 0 else found

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        if not self.sharded:
            if self.global_rank == 0 and Path(filepath).is_dir():  # from an earlier part of the run, which was sharded
                remove(Path(filepath))
            self.barrier()
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        self.finish_checkpoint()
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        write = partial(write_folder, Path(self.broadcast(filepath)), group=self._group)
        shards = shards_of(checkpoint)
        if not self.asynchronous:
            write(shards)
            return
        if self.root_device.type == "cpu":  # on other devices, the state dict is already a copy on the CPU
            shards = copy_of(shards)
        self._writing = self._writer.submit(write, shards)

    def finish_checkpoint(self) -> None:
        """Wait for the checkpoint that is being written. Raises its error on all ranks."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        assert self.lightning_module is not None
        if path.is_dir():
            return load_folder(path, self.lightning_module, self.optimizers)
        checkpoint = read_checkpoint(path)
        load_whole(checkpoint, self.lightning_module, self.optimizers, strict=self.lightning_module.strict_loading)
        return checkpoint

    def teardown(self) -> None:
        try:
            self.finish_checkpoint()
        finally:
            self._writer.shutdown(wait=False)
            super().teardown()


def fully_sharded(*, replicas: AtLeastOne = 1) -> FullySharded:
    """Weights, gradients and optimizer state sharded over the processes (FSDP2).

    Args:
        replicas: number of process groups that each hold a full copy of the model in shards (HSDP), at least 1; 1 = plain FSDP.
    """
    return FullySharded(replicas=replicas)


def shard(
    lm: nn.Module,
    model: PreTrainedModel,
    mesh: DeviceMesh,
    *,
    weights: FirstRanksWeights | None = None,
    replicas: int = 1,
    mixed: bool = False,
) -> None:
    """Shard `lm`, a wrapper around `model` whose methods forward and probe do all computation. Collective.

    Args:
        lm: the wrapper.
        model: the model inside it.
        mesh: Lightning's device mesh.
        weights: source of the weights, if `lm` has none yet.
        replicas: see `fully_sharded`.
        mixed: gather weights in bfloat16 and free them after each block. Autocast alone would gather float32 weights, and keep
            a bfloat16 copy of every weight from the forward to the backward pass on every rank.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    _require_whole_world(mesh)
    policy = MixedPrecisionPolicy()
    if mixed:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    data = _data_mesh(mesh, replicas=replicas)
    for block in blocks_of(model):
        if weights is not None:
            weights.fill(block)
        fully_shard(block, mesh=data, mp_policy=policy)
    if weights is not None:
        weights.fill(lm)
    fully_shard(lm, mesh=data, mp_policy=policy)
    register_fsdp_forward_method(lm, "probe")


def shard_frozen(
    model: PreTrainedModel, mesh: DeviceMesh, *, weights: FirstRanksWeights | None = None, replicas: int = 1
) -> None:
    """Shard the blocks of a model that is never trained. Collective. weights, replicas: as in `shard`.

    Embeddings, final norm and head remain unsharded on each rank: logits are computed in chunks, whose number differs between
    ranks, so this computation must not contain collectives.
    """
    from torch.distributed.fsdp import fully_shard

    data, blocks = _data_mesh(mesh, replicas=replicas), blocks_of(model)
    for block in blocks:
        if weights is not None:
            weights.fill(block)
        fully_shard(block, mesh=data, reshard_after_forward=True)
    if weights is not None:
        weights.fill(model)
    outside = {*model.parameters()} - {p for block in blocks for p in block.parameters()}
    fully_shard(model.base_model, mesh=data, ignored_params=outside)


def _data_mesh(mesh: DeviceMesh, *, replicas: int) -> DeviceMesh:
    """A mesh with one axis of shards; with several replicas, with two axes: replicas, and the shards of each."""
    if replicas == 1:
        return mesh["data_parallel"]
    from torch.distributed.device_mesh import init_device_mesh

    world = dist.get_world_size()
    if world % replicas:
        raise BadValue(
            f"trainer.strategy.replicas={replicas}: expected a divisor of the {world} processes, so that all copies of the "
            "model have equally many processes; usually the number of nodes"
        )
    return init_device_mesh(mesh.device_type, (replicas, world // replicas), mesh_dim_names=("replicate", "shard"))


def sum_over_replicas(lm: nn.Module, *, last: bool) -> None:
    """Reduce gradients over replicas only in the last micro-batch of a step. Call it before each backward pass.

    Reductions within a replica still happen in every pass: deferring them would keep the full gradient on each rank, which
    sharding avoids.

    Args:
        lm: the sharded wrapper.
        last: whether this is the last micro-batch of the step.
    """
    lm.set_requires_all_reduce(last)  # type: ignore[operator]


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated layers of a model. Some model families also list parts of a layer as blocks; these are omitted.

    Raises:
        BadValue: transformers lists no blocks for the model.
    """
    names = set(model._no_split_modules or ())
    blocks: list[nn.Module] = []
    within: set[nn.Module] = set()
    for module in model.modules():
        if type(module).__name__ in names and module not in within:
            blocks.append(module)
            within.update(module.modules())
    if not blocks:
        raise BadValue(
            f"trainer=fsdp: {type(model).__name__} names no blocks (_no_split_modules), so it cannot be sharded layer "
            "by layer; use trainer=ddp, or a model of a known family such as model=qwen2.5-0.5b"
        )
    return blocks


def _require_whole_world(mesh: DeviceMesh) -> None:
    probe = torch.ones(1, device=mesh.device_type)
    dist.all_reduce(probe, group=mesh["data_parallel"].get_group())
    if int(probe) != dist.get_world_size():
        raise ShardingError(
            f"gradients would be summed over {int(probe)} of {dist.get_world_size()} processes; use trainer=fsdp unchanged: "
            "its strategy makes all processes one data-parallel group"
        )


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_model(model: PreTrainedModel) -> PreTrainedModel:
    """`model` itself or, if it is sharded, a copy with all weights on every rank and with adapters merged. Collective."""
    return plain_copy(model) if is_sharded(model) else model


def trained_weights(
    checkpoint: dict[str, Any], module: pl.LightningModule, model: PreTrainedModel
) -> dict[str, Tensor]:
    """The weights of `model`, a submodule of `module`, in a Lightning checkpoint, by the model's own names."""
    prefix = next(f"{name}." for name, part in module.named_modules() if part is model)
    return {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}


def release(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """After training, free this rank's shards, gradients and optimizer state.

    Lightning leaves them on the device, where they would take the space of the full model.
    """
    for optimizer in trainer.strategy.optimizers:
        optimizer.state.clear()
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.grad = None
        local = tensor.data.to_local() if isinstance(tensor.data, DTensor) else tensor.data
        local.untyped_storage().resize_(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
