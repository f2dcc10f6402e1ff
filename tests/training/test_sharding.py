"""FSDP2 in one process: what a forward pass keeps, and what is given back after training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from cft.config.schema import ParameterGroupConfig
from cft.errors import BadValue
from cft.losses.eligible import eligible_tokens
from cft.training.distributed.sharding import _data_mesh, release, shard
from cft.training.layout import placed
from cft.training.parameter_groups import freeze, optimizer_of
from cft.training.selective_lm import SelectiveLM
from tests.fakes import random_llama
from tests.methods import VOCABULARY, batch_of, token_rows
from tests.objectives import sft


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    finally:
        dist.destroy_process_group()


def held_weights(lm: SelectiveLM) -> tuple[int, float]:
    """Bytes of weight-sized tensors that a forward pass under autocast keeps for the backward pass, and the loss."""
    layers = lm.model.base_model.layers
    sizes = {p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2}  # type: ignore[union-attr]
    own = {p.untyped_storage().data_ptr() for p in lm.parameters() if not hasattr(p, "to_local")}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.numel() in sizes and tensor.untyped_storage().data_ptr() not in own:
            kept[id(tensor)] = tensor
        return tensor

    batch = batch_of(token_rows())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss = torch.stack([term.mean(batch.step_counts) for term in lm(batch)]).sum()
    held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept.values()}.values())
    loss.backward()
    return held, float(loss.detach())


def test_no_weight_is_held_between_forward_and_backward(mesh: DeviceMesh) -> None:
    """Autocast alone keeps a bfloat16 copy of each: of a 7B 15 GB on every rank."""
    found = {}
    for mixed in (False, True):
        # Of sizes that no activation of this batch has.
        model = random_llama(vocab=VOCABULARY, num_hidden_layers=3, hidden_size=48, intermediate_size=112, spread=0.1)
        lm = SelectiveLM(model, sft(), layout="packed")
        blocks = sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.ndim == 2)
        shard(lm, model, mesh, mixed=mixed)
        held, loss = held_weights(lm)
        gradients = [p.grad for p in lm.parameters()]
        assert all(g is not None and g.dtype == torch.float32 for g in gradients)
        found[mixed] = (held, loss, blocks)
    held, loss, blocks = found[True]
    assert found[False][0] >= 2 * blocks  # what the test would see
    assert held == 0  # of the blocks; embedding and head stay gathered from forward to backward
    assert loss == pytest.approx(found[False][1], rel=0.02)


def test_replicas_that_do_not_divide_the_processes_are_refused(mesh: DeviceMesh) -> None:
    with pytest.raises(BadValue, match=r"trainer\.strategy\.replicas=2: expected a divisor of the 1 processes"):
        _data_mesh(mesh, replicas=2)


def test_flash_attention_is_told_where_rows_begin() -> None:
    batch = batch_of(token_rows())
    tokens = eligible_tokens(batch, batch.weight_BT > 0)
    inputs = placed(batch.input_ids_BT, tokens, layout="packed", by_rows=False, flash=True).inputs
    starts = (inputs["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    total = inputs["input_ids"].shape[1]
    assert inputs["cu_seq_lens_q"].dtype == torch.int32
    assert inputs["cu_seq_lens_q"].tolist() == inputs["cu_seq_lens_k"].tolist() == [*starts, total]
    longest = max(end - start for start, end in zip(starts, [*starts[1:], total], strict=True))
    assert inputs["max_length_q"] == inputs["max_length_k"] == longest


def test_an_optimizer_in_groups_is_of_the_shards(mesh: DeviceMesh) -> None:
    """Of the parameters before, which no forward pass uses any more, nothing would be trained, without a word."""
    model = random_llama(vocab=VOCABULARY, tie_word_embeddings=True)
    groups = {
        "attention": ParameterGroupConfig(match="self_attn", lr_multiplier=0.1),
        "norms": ParameterGroupConfig(match="norm", lr_multiplier=0.0),
    }
    assigned = freeze(model, groups)
    assert assigned is not None
    lm = SelectiveLM(model, sft())
    shard(lm, model, mesh)
    optimizer = optimizer_of(torch.optim.SGD, assigned, groups, model=model)
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {parameter for parameter in lm.parameters() if parameter.requires_grad}


def test_shards_and_optimizer_states_are_given_back(mesh: DeviceMesh) -> None:
    model = random_llama(vocab=VOCABULARY)
    lm = SelectiveLM(model, sft())
    shard(lm, model, mesh)
    optimizer = torch.optim.AdamW(lm.parameters())
    torch.stack([term.sum for term in lm(batch_of(token_rows()))]).sum().backward()
    optimizer.step()
    trainer = SimpleNamespace(strategy=SimpleNamespace(optimizers=[optimizer]))
    release(trainer, lm)  # type: ignore[arg-type]
    assert not optimizer.state
    assert all(p.grad is None and p.to_local().untyped_storage().nbytes() == 0 for p in lm.parameters())
