"""pipeline=sft_go_llmlingua2 from the annotation to the report, with a small token classifier in place of the hub's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cft.annotation.store import AnnotationStore
from cft.runs.results import RunResults
from cft.scores.store import read_score
from experiments import token_classifier
from tests.entry import run

WORDS = (
    *("pipeline=sft_go_llmlingua2", "limit=8", "num_samples=0", "steps.annotate.limit=24", "hydra.run.dir=out"),
    *(
        f"steps.{step}.{setting}"
        for step in ("train", "reference", "excess", "llmlingua2")
        for setting in ("data.batch_size=4", "trainer.max_epochs=1", "optimizer.lr=1e-3")
    ),
)


@pytest.mark.slow
def test_three_groupings_are_trained_tested_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert token_classifier.write(tmp_path / "classifier") > 0.99
    ended = run("pipeline", *WORDS, "steps.classify.score.path=classifier")
    assert ended.status == 0, ended.text
    out = tmp_path / "out"
    annotation = out / "annotations" / "tiny_arith-arithmetic"
    store = AnnotationStore(annotation)
    score = read_score(annotation / "scores", name="token_classifier", annotation="", model="")
    kept = {True: [], False: []}
    for row in store.rows():
        values = score.of(row)
        assert values is not None
        for (start, end), value in zip(row.char_span, values, strict=True):
            kept[any(char.isdigit() for char in row.response[start:end])].append(value)
    assert min(kept[True]) > 0.5  # the classifier keeps numbers, and drops words
    assert np.mean(np.array(kept[False]) < 0.5) > 0.5
    # The groups come from this score, and the three groupings give three models.
    results = {step: RunResults.read(out / step / "results.json") for step in ("train", "excess", "llmlingua2")}
    assert results["llmlingua2"].settings["groups.score"] == "token_classifier"
    weights = {(out / step / "export" / "model.safetensors").read_bytes() for step in results}
    assert len(weights) == 3
    comparison = (out / "report" / "comparison.md").read_text(encoding="utf-8")
    assert (out / "report" / "report.html").is_file()
    assert comparison.count("sft_go") == 3
