"""What trains twice in one process, a multirun or a notebook, finds the memory of the first model free again."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cft.models import lazy
from cft.models.cpu import gradient_in_place, onednn_linear
from cft.models.kernels import prepare_for_training
from cft.training.layout import Layout
from cft.training.memory import estimate
from cft.training.selective_lm import SelectiveLM
from tests.architectures import uneven
from tests.entry import FIT_ONLY
from tests.entry import run as cft
from tests.fakes import random_llama
from tests.objectives import sft


def parts_of(model: nn.Module) -> dict[str, Any]:
    """Weak references to the model and its weights."""
    return {"model": weakref.ref(model), **{name: weakref.ref(p) for name, p in model.named_parameters()}}


def alive(parts: dict[str, Any]) -> list[str]:
    gc.collect()
    return [name for name, part in parts.items() if part() is not None]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_trained_model_is_freed(monkeypatch: pytest.MonkeyPatch, layout: Layout, checkpointing: bool) -> None:
    monkeypatch.setattr(onednn_linear, "MIN_WEIGHTS", 0)
    monkeypatch.setattr(gradient_in_place, "MIN_WEIGHTS", 0)

    def trained() -> dict[str, Any]:
        model = random_llama(hidden_size=64, intermediate_size=96, tie_word_embeddings=True)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        prepare_for_training(model, kernels="auto")
        for mixed in (False, True):
            estimate(model, states_per_parameter=2, tokens=200, chunk_tokens=8, shards=1, mixed=mixed)
        lm, batch = SelectiveLM(model.train(), sft(chunk_tokens=8), layout=layout), uneven()
        lm.check_head()
        lm.check_layout()
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            loss = torch.stack([term.mean(batch.step_counts) for term in lm(batch)]).sum()
            with gradient_in_place.gradients_in_place(enabled=True):
                loss.backward()
            optimizer.step()
        return parts_of(model)

    assert alive(trained()) == []


@pytest.mark.slow
def test_the_stage_frees_what_it_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded: list[dict[str, Any]] = []
    load = lazy.load_causal_lm

    def spied(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        loaded.append(parts_of(model))
        return model

    monkeypatch.setattr(lazy, "load_causal_lm", spied)
    options = ("model.gradient_checkpointing=true", "trainer.accelerator=cpu", "trainer.max_epochs=-1")
    ended = cft("train", *FIT_ONLY, *options, "data.max_rows=8", "trainer.max_steps=2", "data.batch_size=2")
    assert ended.status == 0, ended.text
    assert [alive(parts) for parts in loaded] == [[]]
