"""A multirun that was cut off goes on with the same command: by configuration, not by the number of a job."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cft.loggers.evaluation_record import evaluated_before, evaluated_model
from cft.runs.lineage import lineage
from cft.runs.results import RunResults
from cft.runs.run import save_config
from tests.entry import FIT_ONLY, SHORT, Ended, run
from tests.stage import annotate, job


def sweep(folder: Path, seeds: str) -> Ended:
    arguments = ("data.annotation=a", f"annotations_dir={folder}", *FIT_ONLY, "trainer.max_epochs=1")
    return run("train", "-m", f"seed={seeds}", "hydra.sweep.dir=sweep", *arguments)


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two jobs done; the second one then looks as if it had been killed after its last checkpoint."""
    monkeypatch.chdir(tmp_path)
    annotate(*SHORT, "annotation=a", f"annotations_dir={tmp_path}")
    ended = sweep(tmp_path, "0,1")
    assert ended.status == 0, ended.text
    (tmp_path / "sweep" / "1" / "results.json").unlink()
    return tmp_path / "sweep"


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """What a job left, Hydra's own record of the command aside."""
    found = [path for path in folder.rglob("*") if path.is_file() and ".hydra" not in path.parts]
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


@pytest.mark.slow
def test_finished_jobs_are_passed_over_the_cut_off_one_goes_on_and_new_ones_are_added(begun: Path) -> None:
    before, metrics = files(begun / "0"), (begun / "1" / "metrics.csv").read_text()
    ended = sweep(begun.parent, "2,0,1")  # the old jobs have other numbers now
    assert ended.status == 0, ended.text
    assert "sweep/0 has finished; nothing to do" in ended.text
    assert "Resuming" in ended.text
    assert files(begun / "0") == before
    assert (begun / "1" / "metrics.csv").read_text() == metrics
    results = {json.loads(path.read_text())["seed"]: path.parent.name for path in begun.glob("*/results.json")}
    assert results.keys() == {0, 1, 2}
    assert (results[0], results[1]) == ("0", "1")
    assert results[2].startswith("0-")


def test_an_evaluation_is_known_by_its_settings_and_by_the_weights_it_read(tmp_path: Path, tiny_folder: Path) -> None:
    def asked(*overrides: str, number: str = "1", multirun: bool = True) -> float | None:
        now = job("evaluate", f"checkpoint='{tiny_folder}'", *overrides, folder=tmp_path / number)
        return evaluated_before(replace(now, multirun=multirun), inputs=inputs)

    inputs = evaluated_model(str(tiny_folder), model_path="")
    done = job("evaluate", f"checkpoint='{tiny_folder}'", "limit=7")
    save_config(tmp_path / "0", done)
    where = {"stage": "evaluate", "run": "0", "arm": {}, "seed": 0, "benchmark": "arithmetic", "split": "test"}
    measured = {"metrics": {"eval/accuracy": {"value": 0.25}}, "per_problem": {}}
    results = RunResults(**where, **measured, lineage=lineage(done.command, inputs))
    results.write(tmp_path / "0")
    assert asked("limit=7") == 0.25
    assert asked("limit=8") is None
    assert asked("limit=7", multirun=False) is None
    results.lineage["inputs"][0]["fingerprint"] = "of the checkpoint as it was"
    results.write(tmp_path / "0")
    assert asked("limit=7") is None
