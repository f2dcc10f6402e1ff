"""Real pipelines on tiny_arith, each step in a process of its own, killed three times and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

WORDS = (
    *("pipeline=cft", "limit=6", "steps.annotate.limit=16", "steps.annotate.unit_size=8", "num_samples=0"),
    *("steps.train.validation.problems=2", "steps.train.trainer.max_epochs=2", "steps.train.data.batch_size=2"),
    *("steps.train.callbacks.last.every_n_steps=1", "hydra.run.dir=out"),
)


# A training has three checkpoints, and the annotation three units.
SELF_EVOLVING = (
    *("pipeline=token_cleaning_self_evolving", "limit=12", "steps.annotate.limit=48", "steps.annotate.unit_size=16"),
    *("num_samples=0", "seed=3", "hydra.run.dir=out"),
    *(
        f"steps.model_{number}.{setting}"
        for number in (1, 2, 3)
        for setting in (
            "data.batch_size=2",
            "trainer.max_epochs=2",
            "callbacks.last.every_n_steps=1",
            "optimizer.lr=1e-3",
        )
    ),
)


def started(folder: Path, words: Sequence[str] = WORDS) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cft", "pipeline", *words],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            text=True,
        )


def ended_after(folder: Path, reached: Callable[[], Any], number: signal.Signals, words: Sequence[str] = WORDS) -> int:
    """Exit status of a pipeline that got a signal once a point was reached."""
    process = started(folder, words)
    try:
        for _ in range(6000):
            if reached() or process.poll() is not None:
                break
            time.sleep(0.05)
        assert process.poll() is None, (folder / "log").read_text()
        process.send_signal(number)
        return process.wait(300)
    finally:
        process.kill()


def record(folder: Path, step: str) -> dict[str, Any]:
    path = folder / "out" / "steps" / f"{step}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@pytest.mark.slow
def test_three_kills_and_a_restart(tmp_path: Path) -> None:
    out = tmp_path / "out"
    units, checkpoints = out / "annotations" / "tiny_arith-arithmetic" / "units", out / "train" / "checkpoints"
    # While it annotates: at least one unit is there.
    assert ended_after(tmp_path, lambda: list(units.glob("*.json")), signal.SIGKILL) == -signal.SIGKILL
    assert not record(tmp_path, "annotate")["finished"]
    # While it trains: told to end, it saves its state, and the pipeline says so.
    assert ended_after(tmp_path, lambda: list(checkpoints.glob("step-*.ckpt")), signal.SIGTERM) == 75
    annotated = (out / "steps" / "annotate.json").stat().st_mtime_ns
    assert record(tmp_path, "annotate")["finished"]
    assert not record(tmp_path, "train")["finished"]
    # After the training, while something is tested.
    assert ended_after(tmp_path, lambda: record(tmp_path, "train").get("finished"), signal.SIGKILL) == -signal.SIGKILL
    trained = (out / "train" / "results.json").read_bytes()

    process = started(tmp_path)
    assert process.wait(600) == 0, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    assert "Resuming" in log  # the annotation's units
    assert f"resume: {out / 'train'}" in (out / "train" / "config.yaml").read_text()
    assert (out / "steps" / "annotate.json").stat().st_mtime_ns == annotated
    assert (out / "train" / "results.json").read_bytes() == trained
    for step in ("annotate", "train", "base", "evaluate", "report"):
        assert record(tmp_path, step)["finished"], step
    assert (out / "report" / "report.html").is_file()
    assert not (out / "earlier").exists()


@pytest.mark.slow
def test_three_kills_leave_the_numbers_of_an_undisturbed_run(tmp_path: Path) -> None:
    """In the annotation, in the second of three trainings, and while the last model is tested."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        folder.mkdir()
    out = killed / "out"
    units, checkpoints = out / "annotations" / "tiny_arith-arithmetic" / "units", out / "model_2" / "checkpoints"
    points: tuple[Callable[[], Any], ...] = (
        lambda: list(units.glob("*.json")),
        lambda: list(checkpoints.glob("step-*.ckpt")),
        lambda: record(killed, "base").get("finished") and record(killed, "evaluate"),
    )
    done = []
    for reached in points:
        assert ended_after(killed, reached, signal.SIGKILL, SELF_EVOLVING) == -signal.SIGKILL
        done.append({path.stem for path in (out / "steps").glob("*.json") if record(killed, path.stem)["finished"]})
    assert done[0] == set()
    assert done[1] == {"annotate", "model_1", "score_1"}
    assert done[2] == {*done[1], "model_2", "score_2", "model_3", "base"}
    times = {name: (out / "steps" / f"{name}.json").stat().st_mtime_ns for name in done[2]}
    for folder in (killed, whole):
        assert started(folder, SELF_EVOLVING).wait(1800) == 0, (folder / "log").read_text()
    assert times == {name: (out / "steps" / f"{name}.json").stat().st_mtime_ns for name in done[2]}  # not run again
    assert f"resume: {out / 'model_2'}" in (out / "model_2" / "config.yaml").read_text()
    for name in ("evaluate", "base"):
        here, there = (json.loads((folder / "out" / name / "results.json").read_text()) for folder in (killed, whole))
        assert here["metrics"] == there["metrics"]
        assert here["verdicts"] == there["verdicts"]
    for name in ("model_1", "model_2", "model_3"):
        here, there = (folder / "out" / name / "export" / "model.safetensors" for folder in (killed, whole))
        assert here.read_bytes() == there.read_bytes(), name
    assert (out / "report" / "report.html").is_file()
    assert not (out / "earlier").exists()
