"""Exports for other trainers: the tokens are the mask's, plain `datasets` opens them, TRL's loss on them is ours."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.config.build import ConfigError, build
from cft.data.batches import TokenRow, collate
from cft.stages.export import export
from cft.training.selective_lm import SelectiveLM
from cft.types import StepCounts
from tests.entry import run
from tests.precision import FEW, float64
from tests.stage import asked, composed
from tests.trl_settings import ONE_STEP

ARGUMENTS = ("annotation=tiny_arith", "mask=critical", "data.max_rows=200", "benchmark.num_test=100")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(*asked("export", *ARGUMENTS, f"out={tmp_path_factory.mktemp('export') / 'a b'}"))


def rows_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.name.split("-")[0]: pq.read_table(path).to_pylist() for path in (folder / "data").iterdir()}


def test_labels_stand_on_the_tokens_whose_every_alternative_failed(exported: Path) -> None:
    """Against the stored outcomes, by a loop of its own."""
    stored = {row.response_id: row for row in AnnotationStore(SHIPPED / "tiny_arith").rows()[:200]}
    splits = rows_of(exported)
    ids = {split: [row["response_id"] for row in rows] for split, rows in splits.items()}
    assert ids.keys() == {"train", "validation"}
    assert sorted([*ids["train"], *ids["validation"]]) == sorted(stored)
    assert 0 < len(ids["validation"]) < len(ids["train"])
    for row in (*splits["train"], *splits["validation"]):
        source = stored[row["response_id"]]
        assert row["input_ids"] == [*source.prompt_ids.tolist(), *source.response_ids.tolist()]
        expected = [-100] * len(source.prompt_ids)
        for token, outcomes in zip(source.response_ids.tolist(), source.alt_outcome.tolist(), strict=True):
            expected.append(token if all(outcome in (0, -2) for outcome in outcomes) else -100)
        assert row["labels"] == expected
        assert row.keys() == {"response_id", "input_ids", "labels", "completion_mask"}
        assert row["completion_mask"] == [0] * len(source.prompt_ids) + [1] * len(source.response_ids)


def test_datasets_opens_it_with_and_without_the_card(exported: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    cache = str(tmp_path)
    by_card = load_dataset(str(exported), cache_dir=cache)
    plain = load_dataset("parquet", data_files=str(exported / "data" / "train-*.parquet"), cache_dir=cache)["train"]
    assert by_card["train"]["labels"][:] == plain["labels"][:]
    assert {name: split.num_rows for name, split in by_card.items()} == {
        name: len(rows) for name, rows in rows_of(exported).items()
    }


def test_the_card_and_the_manifest_say_where_the_labels_come_from(exported: Path) -> None:
    from huggingface_hub import DatasetCard

    text = (exported / "README.md").read_text(encoding="utf-8")
    card = DatasetCard(text, ignore_metadata_errors=False)
    assert card.data.pretty_name == "tiny_arith: labels of mask critical"
    manifest = json.loads((exported / "manifest.json").read_text(encoding="utf-8"))
    (link,) = manifest["lineage"]["inputs"]
    stored = AnnotationStore(SHIPPED / "tiny_arith").manifest()
    assert link["came_from"]["conditions"] == stored["fingerprint_sha256"]
    assert f"| annotation's contents, SHA-256 | {link['fingerprint']} |" in text
    assert f"| annotation's conditions, SHA-256 | {stored['fingerprint_sha256']} |" in text
    labels = [label for rows in rows_of(exported).values() for row in rows for label in row["labels"] if label != -100]
    assert sum(split["labels"] for split in manifest["splits"].values()) == len(labels)
    assert f"{manifest['splits']['train']['labels']:,}" in text


def test_the_same_again_gives_the_same_bytes_and_something_else_is_refused(exported: Path) -> None:
    before = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    export(*asked("export", *ARGUMENTS, f"out={exported}"))
    assert {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()} == before
    with pytest.raises(ConfigError, match="already holds other files"):
        export(*asked("export", *ARGUMENTS, f"out={exported}", "mask=all"))
    assert {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install -e '.[bench]'")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_loss_of_trl_is_ours(accumulate: int, tiny_arith_path: Path, tmp_path: Path) -> None:
    """SFTTrainer on the exported labels, 8 rows a step; ours by the wrapper module, the sum over the critical tokens
    divided by their number, in float64."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    folder = export(*asked("export", "format=trl", *ARGUMENTS, f"out={tmp_path / 'trl'}"))
    data = load_dataset("parquet", data_files=str(folder / "data" / "train-*.parquet"), cache_dir=str(tmp_path))[
        "train"
    ]
    losses: list[float] = []
    seen: list[list[int]] = []

    class Recorded(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen.extend(
                ids[mask.bool()].tolist()
                for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
            )
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
            return loss

    model = AutoModelForCausalLM.from_pretrained(tiny_arith_path, dtype=torch.float32)
    trainer = Recorded(
        model=str(tiny_arith_path),
        args=SFTConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=8 // accumulate,
            gradient_accumulation_steps=accumulate,
            **ONE_STEP,
        ),
        train_dataset=data,
    )
    trainer.train()
    assert len(seen) == 8
    assert len(losses) == accumulate

    cfg = composed("train", "mask=critical")
    by_ids = {tuple(row["input_ids"]): row for row in data}
    chosen = [by_ids[tuple(ids)] for ids in seen]
    token_rows = [
        TokenRow(
            row["response_id"],
            np.array(row["input_ids"]),
            np.array([label != -100 for label in row["labels"]], dtype=np.float32),
            np.array([-1 if label == -100 else 1 for label in row["labels"]], dtype=np.int8),
        )
        for row in chosen
    ]
    counts = sum((row.counts() for row in token_rows), StepCounts())
    lm = SelectiveLM(model.train(), build(cfg.loss)(build(cfg.weighting)), reference=None)
    batch = collate(token_rows, step_counts=counts)
    with torch.no_grad():
        logits = model.eval()(input_ids=batch.input_ids_BT).logits
        with float64():
            ours = sum(float(term.mean(counts)) for term in lm.double()(batch))
            rounded = float((logits.double() - model(input_ids=batch.input_ids_BT).logits).abs().max())
    assert counts.eligible > 20
    assert abs(sum(losses) - ours) <= FEW * rounded  # a loss is a mean of differences of logits


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install -e '.[bench]'")
def test_trl_compares_the_two_tokens_of_a_pair_and_nothing_behind_them(tiny_arith_path: Path, tmp_path: Path) -> None:
    """By the trainer that the card shows: prompt and one token, twice; the first loss of a model against itself is log 2."""
    import math

    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    folder = export(*asked("export", "format=dpo", *ARGUMENTS, f"out={tmp_path / 'dpo'}"))
    pairs = load_dataset("parquet", data_files=str(folder / "data" / "train-*.parquet"), cache_dir=str(tmp_path))[
        "train"
    ]
    seen: list[tuple[list[int], int]] = []
    losses: list[float] = []

    class TokenPairs(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            parts = (inputs[name] for name in ("input_ids", "attention_mask", "completion_mask"))
            seen.extend((ids[there.bool()].tolist(), int(done.sum())) for ids, there, done in zip(*parts, strict=True))
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
            return loss

    arguments = DPOConfig(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=8,
        **ONE_STEP,
    )
    TokenPairs(model=str(tiny_arith_path), args=arguments, train_dataset=pairs).train()
    ours = {(*pair["prompt_ids"], *pair[name]) for pair in pairs for name in ("chosen_ids", "rejected_ids")}
    assert len(seen) == 16
    assert all(tuple(ids) in ours and completed == 1 for ids, completed in seen)
    assert losses == pytest.approx([math.log(2)], rel=1e-5)


@pytest.mark.parametrize("mistake, found", [("mask=critcal", "did you mean critical"), ("outt=x", "did you mean out")])
def test_mistakes_are_found_before_anything_is_written(
    mistake: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("export", mistake)
    assert ended.status == 2
    assert found in ended.text
    assert list(tmp_path.iterdir()) == []
