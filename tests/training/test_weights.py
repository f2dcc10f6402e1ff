"""Weights are read by the first process; the others then hold what a plain load gives, bit for bit, and no more of the host's
memory than their shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from cft.stages.preparation import prepared
from cft.stages.train import _module
from cft.training.distributed.weights import is_empty
from tests import weights_driver
from tests.architectures import FAMILIES, family, model_of
from tests.entry import FIT_ONLY
from tests.stage import composed
from tests.two_ranks import on_two_ranks

QUICK = ("llama-3.2", "qwen3-moe")  # tied weights; a router, and rotary buffers that no file holds


def saved(folder: Path, names: tuple[str, ...]) -> list[Path]:
    for name in names:
        family(name).save_pretrained(folder / name)
    return [folder / name for name in names]


def test_weights_that_arrive_are_those_of_a_plain_load(tmp_path: Path) -> None:
    on_two_ranks(weights_driver.compare, saved(tmp_path, QUICK))


def test_a_further_process_gets_ready_without_a_file_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_arith_path: Path
) -> None:
    folder = shutil.copytree(tiny_arith_path, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    asked = ("trainer=fsdp", "trainer.accelerator=cpu", "data.max_rows=10", "loss=psft", "reference=initial")
    cfg = composed("train", *FIT_ONLY, *asked, f"model.path={folder}")
    run = prepared(cfg, tmp_path)
    module = _module(cfg, run)
    assert is_empty(module)
    assert module.lm.reference_model is not None
    assert is_empty(module.lm.reference_model)
    assert run.starts_as_reference is None


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in QUICK])
def test_weights_of_every_family_arrive(tmp_path: Path, name: str) -> None:
    on_two_ranks(weights_driver.compare, saved(tmp_path, (name,)))


@pytest.mark.slow
def test_ranks_that_make_another_model_are_refused(tmp_path: Path) -> None:
    on_two_ranks(weights_driver.refuse_another_model, saved(tmp_path, ("llama-3.2", "qwen3")))


@pytest.mark.timing
def test_the_host_holds_the_weights_once(tmp_path: Path) -> None:
    """200 MB in eight blocks: the second rank grows by its half of them and a block under way."""
    options = {"vocab_size": 4096, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8}
    model = model_of("llama", **options)
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    block = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters()) / 2**20
    assert weights > 200
    model.save_pretrained(tmp_path / "model")
    on_two_ranks(weights_driver.measure, tmp_path / "model", tmp_path)
    grown = {path.name: float(path.read_text()) for path in tmp_path.glob("*_[01]")}
    print({"weights": weights, "block": block, **grown})
    assert grown["read_1"] > 0.9 * weights
    assert grown["arrived_1"] < weights / 2 + 3 * block
