"""A training that logs to nothing but its own files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.entry import FIT_ONLY, run


def test_a_training_without_a_logger_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("train", *FIT_ONLY, "data.max_rows=8", "trainer.max_epochs=1", "logger=none", "hydra.run.dir=run")
    assert ended.status == 0, ended.text
    assert (tmp_path / "run" / "results.json").is_file()
    assert not list((tmp_path / "run").glob("*.csv"))
