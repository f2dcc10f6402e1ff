"""What a training would stumble over is said before it trains, and what nobody asked for is not built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cft.engines.factory import EngineError
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.training.checkpointing.checkpoints import CHECKPOINTS, kept_checkpoints
from tests.entry import FIT_ONLY, run

FEW = ("data.annotation=tiny_arith", "data.max_rows=20", "trainer.max_epochs=1")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(engine: Any) -> None:
        raise EngineError("engine=shared_prefix cannot decode with this model")

    monkeypatch.setattr(SharedPrefixEngine, "_self_check", refuse)


def test_an_engine_that_cannot_decode_the_model_stops_before_training(no_engine: None) -> None:
    ended = run("train", *FEW, *FIT_ONLY, "evaluation.problems=1", "hydra.run.dir=run")
    assert ended.status == 2
    assert "cannot decode with this model" in ended.err
    assert "Traceback" not in ended.text
    assert kept_checkpoints(Path("run") / CHECKPOINTS) == []


@pytest.mark.slow
def test_no_engine_is_built_where_no_problem_is_solved(no_engine: None) -> None:
    ended = run("train", *FEW, *FIT_ONLY, "hydra.run.dir=run")
    assert ended.status == 0, ended.text
    assert json.loads(Path("run/results.json").read_text())["metrics"] == {}


@pytest.mark.slow
def test_adapters_on_the_embeddings_are_trained_exported_and_evaluated() -> None:
    adapters = ("model/lora=default", "model.lora.target_modules=[q_proj,embed_tokens]", "model.lora.r=2")
    solved = ("evaluation.problems=2", "evaluation.num_samples=0", "evaluation.max_new_tokens=16")
    ended = run("train", *FEW, *FIT_ONLY, *adapters, *solved, "hydra.run.dir=run")
    assert ended.status == 0, ended.text
    assert "eval/accuracy" in json.loads(Path("run/results.json").read_text())["metrics"]
    assert Path("run/export/model.safetensors").is_file()
