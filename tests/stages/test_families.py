"""Annotate, train and evaluate with models of today, as a user types it: what each needs beyond the defaults, and no more."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from cft.models.load import ModelSpec, load_tokenizer
from tests.architectures import family
from tests.entry import run

# By family: further arguments of every stage, those of training, and of what is refused without them the first.
CASES = {
    "qwen3-moe": ((), ("router.aux_coef=0.01",), ""),
    "gemma-3, short rows": (("max_new_tokens=48",), ("evaluation.max_new_tokens=48",), "attend to 100 at most"),
    "granite-4.0-h": (("engine=reference",), ("compute.layout=padded",), "set compute.layout=padded"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_stages_run_with_it(name: str, folder: Path) -> None:
    everywhere, training, refusal = CASES[name]
    engine = [argument for argument in everywhere if argument.startswith("engine")]
    tokenizer = load_tokenizer(ModelSpec(name="tiny_arith", path="package:tiny_arith"))
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    window = {"sliding_window": 100} if name.startswith("gemma") else {}
    small = family(name, vocab_size=len(tokenizer) + 5, max_position_embeddings=256, **window, **special)
    small.save_pretrained("model")
    tokenizer.save_pretrained("model")
    model = ["model=hub", "model.name=small", "model.path=model"]
    annotating = [
        "responses=given",
        "data.min_steps=1",
        "data.max_steps=1",
        "data.num_train=8",
        "limit=4",
        "unit_size=4",
        "annotation=mine",
    ]
    ended = run("annotate", *model, *everywhere, *annotating)
    assert ended.status == 0, ended.text[-2000:]
    rows = [
        "data.annotation=mine",
        "data.batch_size=2",
        "data.validation_fraction=0.25",
        "mask=all",
        "trainer.max_epochs=1",
    ]
    tested = [
        "benchmark.min_steps=1",
        "benchmark.max_steps=1",
        "validation.problems=0",
        "evaluation.problems=2",
        "evaluation.num_samples=0",
    ]
    command = [*model, *engine, *rows, *tested, "callbacks=best_loss", "hydra.run.dir=trained"]
    if refusal:
        ended = run("train", *command)
        assert ended.status == 2
        assert refusal in ended.text
    ended = run("train", *command, *training)
    assert ended.status == 0, ended.text[-2000:]
    results = json.loads(Path("trained/results.json").read_text())
    assert results["calibration"] == ({"router.aux_coef": 0.01} if name == "qwen3-moe" else {})
    with Path("trained/metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert any(row.get("train/term/router") for row in rows) == (name == "qwen3-moe")
    if name == "qwen3-moe":
        assert "4 experts, 2 per token: load-balancing loss with coefficient 0.01" in ended.text
    ended = run(
        "evaluate",
        "checkpoint=trained",
        *everywhere,
        "benchmark.min_steps=1",
        "benchmark.max_steps=1",
        "limit=2",
        "num_samples=0",
    )
    assert ended.status == 0, ended.text[-2000:]
