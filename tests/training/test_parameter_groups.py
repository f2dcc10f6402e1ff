"""Learning rates by parameter group: the steps are torch's own, what is frozen stays, and names are explained."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from transformers import get_cosine_schedule_with_warmup

from cft.config.build import ConfigError
from cft.config.schema import ParameterGroupConfig
from cft.models.load import Lora, apply_lora
from cft.training.checkpointing.checkpoints import CheckpointError
from cft.training.memory import estimate
from cft.training.parameter_groups import described, freeze, optimizer_of
from tests import gradient_driver
from tests.command_lines import mistakes
from tests.conftest import make_llama
from tests.fakes import exact_llama, random_llama
from tests.gradient_driver import EPOCHS, rows, run
from tests.precision import assert_same
from tests.two_ranks import on_two_ranks

STEPS = 2 * EPOCHS
ADAM = partial(torch.optim.AdamW, lr=0.03, betas=(0.9, 0.95), weight_decay=0.1, fused=False)


def groups(**given: tuple[Any, ...]) -> dict[str, ParameterGroupConfig]:
    return {name: ParameterGroupConfig(*entry) for name, entry in given.items()}


# The attention of both blocks, one of them apart; norms are frozen.
GROUPS = groups(
    queries=(r"q_proj", 0.1, 0.0), frozen=(r"norm\.weight$", 0.0), second=(r"layers\.1\..*(k|v|o)_proj", 2.0)
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[gradient_driver.Recorder, Any, Path]:
    """Two epochs of cosine steps in groups, with the state after the first."""
    folder = tmp_path_factory.mktemp("groups")

    class Saves(LearningRateMonitor):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(folder / "first.ckpt")

    _, module, trainer = run(
        world=1, accumulate=4, batch=2, optimizer=ADAM, groups=GROUPS, schedule="cosine",
        callbacks=[Saves(logging_interval="step")], logger=CSVLogger(folder),
    )  # fmt: skip
    return module, trainer, folder


@pytest.mark.usefixtures("in_float64")
def test_steps_are_those_of_torch_with_parameter_groups(trained: tuple[Any, Any, Path]) -> None:
    module, trainer, _ = trained
    model = exact_llama(spread=0.1)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    of: dict[str, list[torch.nn.Parameter]] = {"queries": [], "frozen": [], "second": [], "others": []}
    for name, parameter in model.named_parameters():
        second = "layers.1." in name and name.split(".")[-2] in ("k_proj", "v_proj", "o_proj")
        group = "queries" if "q_proj" in name else "frozen" if "norm" in name else "second" if second else "others"
        of[group].append(parameter)
    rates = {"queries": 0.003, "second": 0.06, "others": 0.03}
    decay = {"queries": 0.0}
    optimizer = torch.optim.AdamW(
        [{"params": of[g], "lr": lr, "weight_decay": decay.get(g, 0.1)} for g, lr in rates.items()], betas=(0.9, 0.95)
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, STEPS)
    sampler, data = trainer.train_dataloader.sampler, rows()
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        order = sampler.order().tolist()
        for chosen in (order[:8], order[8:]):
            model.zero_grad()
            losses = []
            for i in chosen:
                ids = torch.tensor(data[i].ids)
                logprob = model(input_ids=ids[None]).logits[0].log_softmax(-1)
                losses += [-logprob[t - 1, ids[t]] for t in range(1, len(ids)) if data[i].weight[t] > 0]
            torch.stack(losses).mean().backward()
            optimizer.step()
            schedule.step()
    for name, parameter in module.lm.model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, start[name])  # to the bit
        else:
            assert_same(parameter.detach(), dict(model.named_parameters())[name].detach())
            assert not torch.equal(parameter, start[name])
    (state,) = (optimizer.state for optimizer in trainer.optimizers)
    assert {id(p) for p in state} == {id(p) for n, p in module.lm.model.named_parameters() if "norm" not in n}


def test_every_group_has_its_rate_in_the_log(trained: tuple[Any, Any, Path]) -> None:
    _, trainer, folder = trained
    text = next(folder.rglob("metrics.csv")).read_text()
    assert {"lr-AdamW/queries", "lr-AdamW/second", "lr-AdamW/others"} <= set(text.splitlines()[0].split(","))
    (optimizer,) = trainer.optimizers
    assert [group["initial_lr"] for group in optimizer.param_groups] == pytest.approx([0.003, 0.06, 0.03])


def test_a_resumed_training_ends_in_the_same_weights(trained: tuple[Any, Any, Path]) -> None:
    module, _, folder = trained
    checkpoint = torch.load(folder / "first.ckpt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if "norm" in name]  # what is frozen is not saved
    settings: Any = {"world": 1, "accumulate": 4, "batch": 2, "optimizer": ADAM, "schedule": "cosine"}
    _, again, _ = run(**settings, groups=GROUPS, resume=folder / "first.ckpt")
    for name, tensor in module.lm.model.state_dict().items():
        assert torch.equal(tensor, again.lm.model.state_dict()[name]), name
    other = GROUPS | groups(second=(r"layers\.0\..*(k|v|o)_proj", 2.0))
    differing = r"then model\.layers\.0\.self_attn\.k_proj\.weight in others.*now model\.layers\.1"
    with pytest.raises(CheckpointError, match=differing):
        run(**settings, groups=other, resume=folder / "first.ckpt")


@pytest.mark.slow
def test_two_processes_train_the_same_groups(tmp_path: Path) -> None:
    on_two_ranks(gradient_driver.save_weights, tmp_path / "weights.pt", 2, 2, 2, GROUPS)
    there = torch.load(tmp_path / "weights.pt", weights_only=True)
    _, module, _ = run(world=1, accumulate=4, batch=2, groups=GROUPS)
    for name, tensor in module.lm.model.state_dict().items():
        assert_same(there[name], tensor)


# ---- names


def test_the_head_alone_where_it_is_tied_is_one_parameter_and_said() -> None:
    model = make_llama(tied=True)
    head_only = groups(head=(r"^lm_head\.",), rest=(None, 0.0))
    assigned = freeze(model, head_only)
    assert assigned is not None
    assert [p for p in model.parameters() if p.requires_grad] == [model.lm_head.weight]
    assert "  model.embed_tokens.weight is lm_head.weight too (tied): one parameter, in this group" in [
        *described(assigned, head_only)
    ]
    untied = make_llama(tied=False)
    freeze(untied, head_only)
    assert [name for name, p in untied.named_parameters() if p.requires_grad] == ["lm_head.weight"]


def test_what_is_frozen_needs_no_memory_for_training() -> None:
    sizes: Any = {"states_per_parameter": 2, "tokens": 64, "chunk_tokens": 64, "shards": 1, "mixed": False}
    model = random_llama()
    whole = estimate(model, **sizes)
    freeze(model, groups(head=("embed_tokens",), rest=(None, 0.0)))
    part = estimate(model, **sizes)
    trained = model.get_input_embeddings().weight.numel() * 4  # type: ignore[union-attr, operator]
    assert (part.gradients, part.optimizer, part.weights) == (trained, 2 * trained, whole.weights)
    assert part.activations < whole.activations


def test_adapters_are_called_by_their_own_names() -> None:
    model = make_llama()
    apply_lora(model, lora=Lora(r=2))
    chosen = groups(a=("lora_A", 0.5), b=("lora_B", 2.0))
    assigned = freeze(model, chosen)
    assert assigned is not None
    assert {name.split(".")[-3] for name in assigned.trained["a"]} == {"lora_A"}
    optimizer = optimizer_of(partial(torch.optim.SGD, lr=0.1), assigned, chosen, model=model)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"a": 0.05, "b": 0.2}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2 * 7 * 2
    with pytest.raises(
        ConfigError, match=r"only frozen parameters, such as model\.layers\.0\.mlp\.gate_proj\.weight.*lora_A"
    ):
        freeze(model, groups(body=("gate_proj.weight$", 0.1)))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (groups(a=("lm_haed", 0.1)), r"groups\.a\.match: 'lm_haed' matches no parameter.*closest are .*lm_head\.weight"),
        (groups(a=(r"self_atn\.q_proj", 0.1)), r"closest are .*self_attn\.q_proj\.weight"),
        (
            groups(a=("q_proj", 0.1), b=(r"layers\.1", 0.5)),
            r"groups\.b\.match: model\.layers\.1\.self_attn\.q_proj\.weight is matched by .* of group a",
        ),
        (
            groups(a=("embed_tokens", 0.1), b=("lm_head", 0.5)),
            r"model\.embed_tokens\.weight \(tied to lm_head\.weight\) is matched",
        ),
        (groups(a=(None, 0.0)), r"optimizer\.groups: every parameter is in a group with lr_multiplier=0"),
    ],
)  # fmt: skip
def test_groups_that_do_not_suit_the_model_are_refused(chosen: Any, message: str) -> None:
    model = make_llama(tied=True)
    with pytest.raises(ConfigError, match=message):
        freeze(model, chosen)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_decay_that_the_optimizer_has_not_is_refused() -> None:
    class NoDecay(torch.optim.SGD):
        def __init__(self, params: Any) -> None:
            super().__init__(params, lr=0.1)
            del self.defaults["weight_decay"]

    chosen = groups(a=("q_proj", 1.0, 0.1))
    model = make_llama()
    assigned = freeze(model, chosen)
    assert assigned is not None
    with pytest.raises(ConfigError, match=r"optimizer\.groups\.a\.weight_decay: NoDecay has no weight decay"):
        optimizer_of(NoDecay, assigned, chosen, model=model)


def test_what_is_wrong_with_groups_is_said_before_a_model_loads() -> None:
    entries = (
        "a={match: lm_head, lr_multplier: 2}", "b={match: '(', lr_multiplier: -1}", "c={match: null}", "d={match: null}",
        "others={match: x}", "e={lr_multiplier: 1}", "f=3",
    )  # fmt: skip
    found = mistakes("train", *(f"+optimizer.groups.{entry}" for entry in entries))
    expected = (
        "a.lr_multplier: no such key, did you mean lr_multiplier?",
        "b.match: '(' is no regular expression",
        "b.lr_multiplier: expected a number of at least 0, found -1",
        "d.match: null is what no other group matches, and group c has it already",
        "others: is what parameters outside of all groups are called",
        "e.match: has no value",
        "f: expected {match: a regular expression",
    )
    for text in expected:
        assert any(m.startswith(f"optimizer.groups.{text}") for m in found), (text, found)
    assert len(found) == len(expected)
