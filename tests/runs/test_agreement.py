"""Two annotations of the same problems, compared cell by cell; the card of the first shows what came of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cft.annotation.store import AnnotationStore, ProblemRecord, StoreError
from cft.files import sha256_json
from cft.runs.agreement import Share, compare, read_agreements, write_agreement
from cft.runs.annotation_card import annotation_card
from cft.types import AnnotatedResponse, Outcome
from tests.entry import run
from tests.fakes import row

R, W, U, C = Outcome.RIGHT, Outcome.WRONG, Outcome.UNTRIED, Outcome.CUT_OFF


def store_of(folder: Path, rows: list[AnnotatedResponse], *, name: str = "one", **conditions: Any) -> AnnotationStore:
    store = AnnotationStore(folder / name)
    fingerprint = {
        "model": {"path": "m", "revision": "main", "weights": "", "dtype": "float32"},
        "tokenizer": "t", "prompt": "p", "verifier": "v", "unit_size": 2,
        "decoding": {"responses": "solve", "max_new_tokens": 9, "eos_ids": [2]},
        "data": {"source": "d", "split": "train", "sha256": "0"},
        "numerics": {"name": name, "version": "7", "device": "cpu"},
        **conditions,
    }  # fmt: skip
    info = {"name": name, "model_name": "m", "config": {"num_alternatives": 2}, "versions": {}, "lineage": {}}
    problems = [ProblemRecord(r.problem_id, "annotated", r.response, "1", len(r.response_ids), 3) for r in rows]
    with store.writing(fingerprint=fingerprint, info=info):
        store.commit(0, rows=rows, problems=problems, facts={"counts": {"problems": len(rows)}, "compute": {}})
    assert store.manifest()["fingerprint_sha256"] == sha256_json(fingerprint)
    return store


def test_shares_are_counted_by_hand(tmp_path: Path) -> None:
    first = row([5, 6, 7], outcomes=[[W, W], [R, U], [C, W]], number=0, response="same")
    second = row([5, 6], outcomes=[[W, W], [W, W]], number=1, response="mine")
    # Position 0: one outcome differs and with it the mask. 1: the same. 2: another alternative, the mask as before.
    alternatives = first.alt_ids.copy()
    alternatives[2] = [30, 31]
    outcomes = np.asarray([[W, R], [R, U], [W, W]], np.int8)
    changed = replace(first, alt_outcome=outcomes, alt_ids=alternatives)
    other_text = replace(second, response_id="another", response="theirs")
    found = compare(
        store_of(tmp_path, [first, second]), store_of(tmp_path, [changed, other_text], name="other", unit_size=1)
    )
    assert found.responses == Share(1, 2)
    assert found.verdicts == Share(2, 2)
    assert found.alternatives == Share(2, 3)
    assert found.outcomes == Share(2, 3)
    assert found.critical == Share(2, 3)
    assert str(found.outcomes) == "2 of 3 (66.67%)"


def test_what_differs_beyond_the_engine_is_named(tmp_path: Path) -> None:
    rows = [row([5, 6, 7])]
    one = store_of(tmp_path, rows)
    with pytest.raises(StoreError, match=r"differ in more than the engine.*\n  verifier: 'v' and 'w'"):
        compare(one, store_of(tmp_path, rows, name="other", verifier="w"))
    with pytest.raises(StoreError, match="no problem in common"):
        compare(one, store_of(tmp_path, [row([5, 6, 7], number=9)], name="third"))


def test_the_card_shows_it_and_a_second_comparison_replaces_the_first(tmp_path: Path) -> None:
    rows = [row([5, 6, 7], outcomes=[[W, W], [R, U], [W, W]])]
    one, other = store_of(tmp_path, rows), store_of(tmp_path, rows, name="other")
    assert "## Agreement" not in annotation_card(one)
    for _ in range(2):
        write_agreement(one, other, compare(one, other))
    assert [found["with"] for found in read_agreements(one.folder)] == ["other"]
    card = annotation_card(one)
    assert (
        "| other: other, 7, cpu, float32 | 1 of 1 (100.00%) | 3 of 3 (100.00%) | 5 of 5 (100.00%) | 3 of 3 (100.00%) |"
        in card
    )
    assert "Of this annotation (one, 7, cpu, float32)" in card
    (one.folder / "agreement.json").write_text("{")
    with pytest.raises(StoreError, match=r"agreement\.json: damaged"):
        annotation_card(one)


def test_entropies_that_are_not_known_are_said_to_be(tmp_path: Path) -> None:
    unknown = replace(row([5, 6, 7]), entropy=np.full(3, np.nan, np.float32))
    card = annotation_card(store_of(tmp_path, [unknown]))
    assert "| mean entropy | not known: the engine saw the most probable tokens only |" in card
    assert "not known: servers decoded" in card


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [row([5, 6, 7])]
    store_of(tmp_path, rows)
    store_of(tmp_path, rows, name="other")
    ended = run("agreement", "annotation=one", "other=other", f"annotations_dir={tmp_path}")
    assert ended.status == 0, ended.text
    assert "same outcomes │ 6 of 6 (100.00%)" in ended.text
    assert "## Agreement" in (tmp_path / "one" / "README.md").read_text(encoding="utf-8")
    ended = run("agreement", "annotation=one", "other=absent", f"annotations_dir={tmp_path}")
    assert ended.status == 2
    assert "other=absent" in ended.text
