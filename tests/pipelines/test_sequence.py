"""Data sets in sequence, from the annotations to the report, and what distinguishes the baseline from SLCA++."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cft.report.continual import sequences
from cft.runs.results import RunResults
from tests.entry import run

WORDS = (
    *("~sequence.multiplication", "limit=8", "num_samples=0", "steps.annotate.limit=24"),
    *("steps.train.data.batch_size=8", "steps.train.trainer.max_epochs=2", "steps.train.optimizer.lr=1e-3"),
)


@pytest.mark.slow
def test_the_baseline_differs_in_loss_and_rates_and_in_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {}
    for name in ("slca_continual", "continual_sft"):
        ended = run("pipeline", f"pipeline={name}", *WORDS)
        assert ended.status == 0, ended.text
        out = tmp_path / "outputs" / "pipeline" / name
        first, second = (RunResults.read(out / f"train-{one}" / "results.json") for one in ("addition", "subtraction"))
        settings[name] = first.settings
        (start,) = [link for link in (second.lineage or {})["inputs"] if link["kind"] == "checkpoint"]
        assert start["came_from"]["run"] == "train-addition"
        (matrix,) = sequences([out])
        assert matrix.data == ("addition", "subtraction")
        assert matrix.is_whole
        for row, trained in zip(matrix.right, ("base", "addition", "subtraction"), strict=True):
            for column, test in zip(row, matrix.data, strict=True):
                found = json.loads((out / f"{trained}-on-{test}" / "results.json").read_text())
                assert column.mean() == found["metrics"]["eval/accuracy"]["value"]
        assert (out / "report" / "continual_measures.csv").is_file()
    slca, plain = settings.values()
    differing = {".".join(key.split(".")[:2]) for key in {*slca, *plain} if slca.get(key) != plain.get(key)}
    assert differing == {"loss.token_loss", "optimizer.groups"}
