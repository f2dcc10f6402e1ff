"""What a run is: its settings and their hash, the rows it began on, what an evaluation says of a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cft.config.build import ConfigError
from cft.data.annotated import rows_hash
from cft.decoding import StopScaling
from cft.report.arm_names import is_base, is_sft, name_of
from cft.runs.arm import arm_of
from cft.runs.results import RunResults
from cft.runs.run import (
    MEASURED_AS,
    TRAINED_BY,
    identity_of,
    keep_rows,
    settings_of,
)
from cft.stages.evaluation_identity import ARM_KEYS, evaluated_identity
from tests.fakes import row
from tests.stage import job


def identity(*overrides: str) -> str:
    return identity_of(settings_of(job("train", *overrides), TRAINED_BY))


DECIDES = {
    "data.batch_size=7": "data.batch_size",
    "data.max_rows=5": "data.max_rows",
    "schedule.shape=linear": "schedule.shape",
    "optimizer.weight_decay=0.5": "optimizer.weight_decay",
    "mask.rule=any": "mask.rule",
    "loss.chunk_tokens=7": "loss.chunk_tokens",
    "callbacks=best_loss": "callbacks.best.monitor",
    "prompt=plain": "prompt._target_",
    "trainer.accumulate_grad_batches=2": "trainer.accumulate_grad_batches",
}


def test_whatever_training_depends_on_is_part_of_the_identity() -> None:
    base, changed = (settings_of(job("train", *overrides), TRAINED_BY) for overrides in ((), DECIDES))
    for name in DECIDES.values():
        assert identity_of(base | {name: changed[name]}) != identity_of(base), name


@pytest.mark.slow
@pytest.mark.parametrize("override", [*DECIDES, "experiment=tiny_arith_cft"])
def test_whatever_training_depends_on_changes_the_identity(override: str) -> None:
    assert identity(override) != identity()


def test_seed_and_measurement_are_no_part_of_the_identity() -> None:
    fixed = ("mask=random_like_critical", "model/lora=default")
    overrides = (
        *("seed=3", "validation.problems=1", "evaluation.problems=1", "evaluation.temperature=0.5"),
        *("trainer.enable_progress_bar=true", "annotations_dir=elsewhere", "data.dir=elsewhere"),
    )
    assert identity(*fixed, *overrides) == identity(*fixed)
    assert identity(*fixed, "mask.seed=9") != identity(*fixed)  # a fixed draw is no longer the run's seed


@pytest.mark.parametrize("model", ["tiny_arith", "smollm2"])
def test_an_evaluated_run_stays_the_arm_it_was_trained_as_with_the_facts_of_its_training(model: str) -> None:
    kept = {
        "budget": {"epochs": 2, "steps": 10},
        "data": {"fingerprint": "f", "rows_sha256": "r"},
        "train_seconds": 3.0,
        "best_epoch": 1,
        "arm": {"model": "smollm2", "mask": "critical", "weighting": "uniform"},
        "settings": {"data.batch_size": 8},
        "identity": "abc",
    }
    here = job("evaluate", "checkpoint=run", f"model={model}", *(["model.path=x/y"] if model != "tiny_arith" else []))
    measured = {"metrics": {}, "per_problem": {}, "benchmark": "a", "split": "test"}  # of the training's own evaluation
    trained = RunResults(stage="train", run="run", seed=0, **measured, **kept)
    found = evaluated_identity(here, trained, checkpoint="run", weights="", rule=None)
    assert found == kept


def test_a_plain_folder_is_told_by_its_weights_and_a_model_by_its_name() -> None:
    given = "runs/3/export"
    found = evaluated_identity(
        job("evaluate", f"checkpoint={given}"), None, checkpoint=given, weights="0123456789abcdef", rule=None
    )
    assert found["arm"] == {"model": "3/export", "weights": "0123456789ab"}
    plain = job("evaluate")
    base = evaluated_identity(plain, None, checkpoint="", weights="", rule=None)
    assert base["arm"] == arm_of(plain, ARM_KEYS) == {"model": "tiny_arith"}
    assert base["settings"] == settings_of(plain, MEASURED_AS)
    assert evaluated_identity(job("evaluate", "decoding=none"), None, checkpoint="", weights="", rule=None) == base


def test_a_decoding_rule_makes_another_arm() -> None:
    found = []
    for scale in (1.0, 2.0):
        here = job("evaluate", "decoding=stop_scaling", f"decoding.scale={scale}")
        found.append(evaluated_identity(here, None, checkpoint="", weights="", rule=StopScaling(scale=scale)))
        assert found[-1]["arm"] == {"model": "tiny_arith", "decoding": "stop_scaling", "decoding.scale": scale}
        assert found[-1]["settings"]["decoding.scale"] == scale
        assert name_of(found[-1]["arm"]) == f"base model, decoding=stop_scaling, scale={scale}"
    assert found[0]["identity"] != found[1]["identity"]
    sft = {"model": "m", "mask": "all", "weighting": "uniform", "loss": "nll"}
    decoded = sft | {"decoding": "tcd"}
    assert [name_of(sft), name_of(decoded)] == ["SFT", "SFT, decoding=tcd"]
    assert [is_sft(sft), is_sft(decoded), is_base(found[0]["arm"])] == [True, False, False]


def facts(digest: str, rows: int) -> dict[str, Any]:
    return {"rows_sha256": digest, "train_rows": rows, "validation_rows": 1}


def test_a_run_is_not_continued_on_other_rows(tmp_path: Path) -> None:
    annotation = Path("annotations/a")
    keep_rows(tmp_path, facts("aaaa", 10), source=annotation, write=True)
    keep_rows(tmp_path, facts("aaaa", 10), source=annotation, write=True)
    with pytest.raises(ConfigError, match=r"annotations/a gives now: 10 \+ 1 rows .*aaaa.*12 \+ 1 rows .*bbbb"):
        keep_rows(tmp_path, facts("bbbb", 12), source=annotation, write=True)
    assert json.loads((tmp_path / "data.json").read_text()) == facts("aaaa", 10)


def test_the_hash_of_rows_sees_tokens_outcomes_and_number() -> None:
    one = row([1, 2], response="ab", char_span=[[0, 1], [1, 2]], outcomes=[[0], [1]])
    others = [
        [],
        [one, one],
        [replace(one, response_ids=np.array([1, 3], np.int32))],
        [replace(one, alt_outcome=np.array([[1], [1]], np.int8))],
    ]
    assert len({rows_hash(rows) for rows in [[one], *others]}) == 5
    assert rows_hash([replace(one, response_id="renamed")]) == rows_hash([one])
