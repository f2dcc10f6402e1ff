"""The memory estimate under gradient checkpointing."""

from __future__ import annotations

import pytest

from cft.training.memory import activation_bytes, recomputed_bytes
from tests.fakes import random_llama


def test_one_block_is_whole_while_it_is_computed_again() -> None:
    model = random_llama(num_hidden_layers=4)
    whole = activation_bytes(model, tokens=512, mixed=False)
    assert recomputed_bytes(model, tokens=512, mixed=False) == 0
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert activation_bytes(model, tokens=512, mixed=False) < whole / 4
    assert recomputed_bytes(model, tokens=512, mixed=False) == pytest.approx(whole / 4, rel=0.01)
    assert model.is_gradient_checkpointing
