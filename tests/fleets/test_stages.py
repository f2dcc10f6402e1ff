"""What stages make of a fleet whose units come in any order and may be missing: without a cluster."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cft.annotation.store import AnnotationStore, StoreError, find_annotation, table_hash
from cft.fleets.base import FleetError
from cft.fleets.in_process import InProcess
from cft.positions import Stride
from cft.stages.annotation_worker import MakeAnnotating
from cft.stages.evaluation_worker import MakeSolving
from cft.verifiers import Numeric
from tests.entry import SHORT, run
from tests.stage import composed

LEAVING = ("fleet._target_=tests.fleets.toy.Leaving", "allow_targets=[tests.]")
ANNOTATE = (*SHORT, "unit_size=2", "annotation=a", "annotations_dir=annotations", "max_new_tokens=48")


@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_unit_left_out_is_reported_and_the_same_command_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("annotate", *ANNOTATE, *LEAVING)
    assert ended.status == 2, ended.text
    assert "1 unit was left out: unit 1: failed on 3 workers, last: ValueError: poison" in ended.text
    assert "The other units are in annotations/a. To try again: cft annotate" in ended.text
    store = AnnotationStore("annotations/a")
    assert set(store.units()) == {0, 2}
    with pytest.raises(
        StoreError, match=r"(?s)not done yet: some of its units are missing.*cft annotate data.max_steps=2"
    ):
        find_annotation("a", annotations_dir="annotations")
    if not again:
        return
    assert run("annotate", *ANNOTATE, "limit=4").status == 0  # one process, which asks for less and fills the gap
    assert run("annotate", *ANNOTATE, "annotation=b").status == 0
    assert table_hash(store.rows()) == table_hash(AnnotationStore("annotations/b").rows())
    assert store.manifest()["fingerprint"] == AnnotationStore("annotations/b").manifest()["fingerprint"]


@pytest.mark.slow
def test_an_evaluation_in_pieces_is_the_whole_one_and_none_where_a_piece_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("limit=4", "num_samples=1", "max_new_tokens=48")
    assert run("evaluate", *asked, "hydra.run.dir=one").status == 0
    ended = run("evaluate", *asked, *LEAVING, "hydra.run.dir=two")
    assert ended.status == 2
    assert "1 unit was left out" in ended.text
    assert not Path("two/results.json").exists()
    monkeypatch.setattr("tests.fleets.toy._Leaving.pieces", 1)  # piece 0 alone, so none is missing
    assert run("evaluate", *asked, *LEAVING, "hydra.run.dir=two").status == 0
    samples = [pq.read_table(f"{folder}/samples.parquet") for folder in ("one", "two")]
    assert samples[0].equals(samples[1])
    found: list[dict[str, Any]] = [json.loads(Path(f"{folder}/results.json").read_text()) for folder in ("one", "two")]
    assert found[0]["metrics"] == found[1]["metrics"]


def test_shards_and_a_chosen_gpu_are_refused_with_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("annotate", "fleet=ray", "num_shards=2", "device=cuda:1", "fleet.num_workers=0")
    assert ended.status == 2
    assert "num_shards: expected 1 with fleet=ray" in ended.text
    assert "device: expected auto, cpu or cuda with fleet=ray" in ended.text
    assert "fleet.num_workers: expected an integer of at least 1 or null, found 0" in ended.text


def test_a_missing_package_is_named_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ray" else find(name, *a))
    monkeypatch.setattr("cft.stages.score.score", lambda cfg, job: pytest.fail("the stage began"))
    ended = run("score", "fleet=ray")
    assert ended.status == 2
    assert (
        "fleet: ray needs the package ray, which is not installed: pip install 'critical-token-finetuning[ray]'"
        in ended.text
    )


def test_workers_that_ask_servers_hold_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def crew(self: InProcess, make: Any, *, device: str, expected: Any) -> Any:
        asked.append(device)
        raise FleetError("seen")

    monkeypatch.setattr(InProcess, "crew", crew)
    for command in ("annotate", "evaluate"):
        for engine in (("engine=server", "engine.url=[http://gpu1:8000]"), ("engine=shared_prefix",)):
            assert run(command, *engine, "limit=1").status == 2
    assert asked == ["cpu", "auto", "cpu", "auto"]


def test_what_travels_to_workers_holds_neither_loggers_nor_data() -> None:
    cfg = composed("annotate", "logger=wandb", "logger.wandb.project=secretive", "fleet=none")
    verifier, positions = Numeric(fallback_last_number=True), Stride(every=2)
    sent = pickle.dumps(MakeAnnotating.of(cfg, verifier=verifier, positions=positions, every_outcome=False))
    assert b"secretive" not in sent
    assert b"cft.data.sources" not in sent
    again: MakeAnnotating = pickle.loads(sent)
    assert dict(again.cfg.model) == dict(cfg.model)
    assert again.cfg.max_new_tokens == cfg.max_new_tokens
    cfg = composed("evaluate", "logger=wandb", "logger.wandb.project=secretive", "benchmark=cft11")
    assert b"secretive" not in pickle.dumps(
        MakeSolving(cfg, None, hash_weights=True).of(cfg, spec=None, hash_weights=True)
    )  # pyright: ignore
