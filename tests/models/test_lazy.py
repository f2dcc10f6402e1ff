"""What is known of a model without its weights is what is known with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cft.models.architecture import context_length
from cft.models.lazy import LazyModel
from cft.models.load import Lora, ModelError, ModelSpec, eos_ids, load_causal_lm, load_tokenizer, weights_hash
from tests.conftest import make_llama, make_tokenizer

SPEC = ModelSpec(name="tiny_arith", path="package:tiny_arith")


def folder_of(path: Path, **config: object) -> ModelSpec:
    make_llama(**config).save_pretrained(path)  # type: ignore[arg-type]
    make_tokenizer().save_pretrained(path)
    return ModelSpec(name="made", path=str(path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_hash_of_the_files_is_that_of_the_loaded_weights(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint with tied embeddings, which its file holds once."""
    spec = dataclasses.replace(SPEC, dtype=dtype)
    expected = weights_hash(load_causal_lm(spec))
    monkeypatch.setattr("cft.models.lazy.load_causal_lm", lambda *_, **__: pytest.fail("the weights were loaded"))
    assert LazyModel(spec, load_tokenizer(spec), device="cpu").weights() == expected


def test_weights_under_other_names_are_hashed_as_loaded(tmp_path: Path) -> None:
    """transformers finds a backbone's weights without their prefix; then the file's names are not the model's."""
    spec = folder_of(tmp_path)
    from safetensors.torch import load_file, save_file

    file = tmp_path / "model.safetensors"
    save_file({name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    model = LazyModel(spec, load_tokenizer(spec), device="cpu")
    assert model.weights() == weights_hash(load_causal_lm(spec))
    assert model.is_loaded


def test_adapters_are_hashed_as_loaded() -> None:
    spec = dataclasses.replace(SPEC, lora=Lora(r=2))
    model = LazyModel(spec, load_tokenizer(spec), device="cpu")
    assert model.weights() == weights_hash(model.load()) != weights_hash(load_causal_lm(SPEC))


def test_facts_are_those_of_the_loaded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(SPEC)
    spec = dataclasses.replace(SPEC, eos_tokens=[tokenizer.convert_ids_to_tokens(7)])
    loaded = load_causal_lm(spec, ends=[9, None])
    facts = LazyModel.of(loaded, tokenizer, spec=spec).facts
    monkeypatch.setattr("cft.models.lazy.load_causal_lm", lambda *_, **__: pytest.fail("the weights were loaded"))
    assert LazyModel(spec, tokenizer, device="cpu", ends=[9, None]).facts == facts
    assert facts.eos_ids == eos_ids(loaded, tokenizer) == (2, 7, 9)
    assert facts.context == context_length(loaded.config)
    assert facts.vocab_size == loaded.get_output_embeddings().weight.shape[0]  # type: ignore[union-attr]
    assert torch.equal(loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight)  # type: ignore[union-attr]


def test_a_model_without_an_end_is_refused_before_its_weights(tmp_path: Path) -> None:
    spec = folder_of(tmp_path)
    tokenizer = load_tokenizer(spec)
    tokenizer.eos_token = None
    for name in ("generation_config.json", "config.json"):
        file = tmp_path / name
        file.write_text(file.read_text().replace('"eos_token_id"', '"not_eos"'))
    with pytest.raises(ModelError, match=r"name one in model\.eos_tokens"):
        _ = LazyModel(spec, tokenizer, device="cpu").facts
