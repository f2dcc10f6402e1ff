"""Tokens that a model gets beside its own: rows for them, in the export too, and nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cft.errors import BadValue
from cft.models.lazy import LazyModel
from cft.models.load import Lora, ModelSpec, export, load_causal_lm, load_tokenizer, weights_hash

TAGS = ["<Thinking>", "</Thinking>"]


def spec(folder: Path, **further: object) -> ModelSpec:
    return ModelSpec(name="tiny", path=str(folder), **further)  # type: ignore[arg-type]


def test_a_row_for_every_token_and_the_export_has_them(tiny_folder: Path, tmp_path: Path) -> None:
    with_tags = spec(tiny_folder, added_tokens=TAGS)
    before, tokenizer = load_causal_lm(spec(tiny_folder)), load_tokenizer(with_tags)
    model: Any = load_causal_lm(with_tags)
    ids = [tokenizer.get_vocab()[tag] for tag in TAGS]
    text = tokenizer("<Thinking></Thinking>", add_special_tokens=False)["input_ids"]
    assert text == ids  # a token each
    for end in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, end)().weight, getattr(model, end)().weight
        own = sorted(load_tokenizer(spec(tiny_folder)).get_vocab().values())
        assert torch.equal(new[: len(old)][own], old[own])
        for token in ids:
            assert torch.equal(new[token], old[own].double().mean(0).float())
    lazy = LazyModel(with_tags, tokenizer, device="cpu")
    assert lazy.facts.vocab_size == model.config.vocab_size == model.get_output_embeddings().weight.shape[0]
    assert lazy.weights() == weights_hash(model)  # drawn from nothing: the same model each time

    saved = spec(export(model, tokenizer, folder=tmp_path / "export"))
    assert load_tokenizer(saved).convert_tokens_to_ids(TAGS) == ids
    assert weights_hash(load_causal_lm(saved)) == weights_hash(model)
    again = load_causal_lm(
        spec(tmp_path / "export", added_tokens=TAGS)
    )  # tokens that are there already stay as they are
    assert weights_hash(again) == weights_hash(model)


def test_rows_that_adapters_would_leave_untrained_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(BadValue, match=r"model\.added_tokens: their rows .* would stay untrained"):
        spec(tiny_folder, added_tokens=TAGS, lora=Lora())
