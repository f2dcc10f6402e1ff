"""Cards say what the files hold, the same text each time, in the hub's form, and change nothing beside them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard

from cft.annotation.rows import OPTIONAL, ROW_SCHEMA
from cft.annotation.store import SHIPPED, AnnotationStore
from cft.files import sha256_file
from cft.formats import Labels
from cft.masks import Critical
from cft.report.build import facts_of
from cft.report.compare import compare
from cft.report.read import collect
from cft.runs.annotation_card import COLUMNS, OUTCOMES, annotation_card, write_annotation_card
from cft.runs.cards import card, code, size_category, table
from cft.runs.lineage import annotation_link
from cft.runs.weights_card import model_card, write_model_card
from cft.stages.export import export_card
from cft.types import Outcome
from tests.results import arm, write_run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnnotationStore]:
    """The shipped annotation, read once."""
    folder = tmp_path_factory.mktemp("annotations") / "tiny_arith"
    shutil.copytree(SHIPPED / "tiny_arith", folder)
    found = AnnotationStore(folder)
    rows = found.rows()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnnotationStore, "rows", lambda self: rows)
        yield found


@pytest.fixture(scope="module")
def text(store: AnnotationStore) -> str:
    """Of its card."""
    return annotation_card(store)


def test_a_card_changes_nothing_of_the_annotation_and_the_shipped_one_is_that_of_today(store: AnnotationStore) -> None:
    shipped = (store.folder / "README.md").read_bytes()
    (store.folder / "README.md").unlink()
    before = {path: sha256_file(path) for path in store.folder.rglob("*") if path.is_file()}
    path = write_annotation_card(store)
    assert path.read_bytes() == shipped
    assert {p: sha256_file(p) for p in store.folder.rglob("*") if p.is_file() and p != path} == before


def test_the_numbers_on_an_annotation_card_are_those_of_its_rows(store: AnnotationStore, text: str) -> None:
    rows, manifest = store.rows(), store.manifest()
    assert manifest["fingerprint_sha256"] in text
    critical = np.concatenate([Critical()(row) for row in rows])
    assert f"| critical tokens | {int(critical.sum()):,} ({critical.mean():.1%}) with 2 alternatives |" in text
    assert f"| responses | {manifest['counts']['annotated']:,} |" in text
    stated = {
        int(c): int(n.replace(",", "")) for c, n in re.findall(r"^\| (-?\d) \| [\w ]+ \| ([\d,]+) \|$", text, re.M)
    }
    found, counts = np.unique(np.concatenate([row.alt_outcome.ravel() for row in rows]), return_counts=True)
    assert stated == dict.fromkeys(map(int, Outcome), 0) | dict(zip(found.tolist(), counts.tolist(), strict=True))
    statuses = {record.status for record in store.problems()}
    assert all(f"| {status} | {manifest['counts'][status]:,} |" in text for status in statuses)


def test_every_column_and_outcome_is_explained() -> None:
    assert list(COLUMNS) == [*ROW_SCHEMA.names, *OPTIONAL]
    assert set(OUTCOMES) == set(Outcome)


def test_the_hub_reads_the_card_and_datasets_opens_the_folder_by_it(store: AnnotationStore, tmp_path: Path) -> None:
    from datasets import load_dataset

    read = DatasetCard.load(store.folder / "README.md")
    assert read.data.size_categories == ["1K<n<10K"]
    for kind in ("rows", "problems"):
        loaded = load_dataset(str(store.folder), kind, cache_dir=str(tmp_path))
        expected = store.rows() if kind == "rows" else store.problems()
        assert loaded["train"]["problem_id"][:] == [row.problem_id for row in expected]


@pytest.mark.parametrize("text", ["a|b", "two\nlines", "<script>alert(1)</script>", "`tick`"])
def test_a_cell_of_a_table_holds_its_text(text: str) -> None:
    lines = table(("head", "x"), [(text, "next")]).splitlines()
    assert len(lines) == 3
    assert len(re.findall(r"(?<!\\)\|", lines[2])) == 3
    assert "<script" not in lines[2]


def test_a_block_of_code_ends_where_it_is_meant_to() -> None:
    block = code("yaml", "a\n```\n````x\nb").splitlines()
    assert block[0] == "`````yaml"
    assert block[-1] == "`````"


def test_headers_are_data_whatever_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_TOKEN", "planted0123456789")
    header = {"pretty_name": "a: b\n---\nlicense: mit # '\"", "tags": ["x: y"]}
    text = card(DatasetCardData(**header), ["# T", "", "made with planted0123456789 at https://me:hunter22@host"])
    assert DatasetCard(text).data.to_dict() == header
    assert "planted" not in text
    assert "hunter22" not in text
    assert "\n\n\n" not in text


@pytest.mark.parametrize("rows, expected", [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "n>1M")])
def test_sizes_are_the_hubs(rows: int, expected: str) -> None:
    assert size_category(rows) == expected


# --- models


def results(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "stage": "train",
        "run": "a",
        "per_problem": {"id": [], "correct": []},
        "arm": {"model": "qwen", "mask": "critical", "weighting": "uniform"},
        "settings": {
            "model.path": "Qwen/Qwen2.5-0.5B",
            "model.revision": "060db64",
            "loss.normalizer": "critical",
            "optimizer.lr": 1e-5,
        },
        "identity": "0123456789ab",
        "seed": 3,
        "benchmark": "gsm8k",
        "split": "test",
        "problems": 1319,
        "best_epoch": 1,
        "best_validation": {"metric": "val/accuracy", "value": 0.4},
        "eligible_fraction": 0.12,
        "data": {
            "annotation": "mine",
            "fingerprint": "f" * 64,
            "rows_sha256": "a" * 64,
            "train_rows": 1000,
            "validation_rows": 100,
            "eligible_tokens": 12,
            "response_tokens": 100,
        },
        "budget": {"epochs": 2, "steps": 126, "rows_per_step": 16},
        "evaluation": {"num_samples": 4, "temperature": 1.0, "verifier": "numeric|2"},
        "metrics": {
            "eval/accuracy": {"value": 0.375, "low": 0.25, "high": 0.5},
            "eval/entropy": {"value": None, "low": None, "high": None},
        },
        "lineage": {
            "command": "cft train mask=critical",
            "inputs": [{"came_from": {"command": "cft annotate annotation=mine", "inputs": []}}],
        },
        **changes,
    }


def written(folder: Path, **changes: Any) -> str:
    (folder / "export").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results(**changes)))
    return write_model_card(folder).read_text(encoding="utf-8")


def test_a_model_card_has_lineage_commands_and_numbers_with_intervals(tmp_path: Path) -> None:
    text = written(tmp_path / "run")
    assert model_card(tmp_path / "run") == text
    assert "| `accuracy` | 0.3750 | [0.2500, 0.5000] |" in text
    assert "entropy" not in text  # nothing was measured
    assert "1,319 problems of gsm8k, split test" in text
    assert "cft annotate annotation=mine\ncft train mask=critical" in text
    for fact in (
        "f" * 64,
        "a" * 64,
        "0123456789ab",
        "12 of 100 response tokens (12.0%)",
        "seed: 3",
        "epoch 2, chosen by",
    ):
        assert fact in text
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert data.base_model == "Qwen/Qwen2.5-0.5B"
    (measured,) = data.eval_results or []
    assert (measured.dataset_name, measured.dataset_split) == ("gsm8k", "test")
    assert (measured.metric_type, measured.metric_value) == ("accuracy", 0.375)


def test_a_model_card_claims_neither_a_hub_model_nor_numbers_that_are_not_there(tmp_path: Path) -> None:
    settings = {**results()["settings"], "model.path": "package:tiny_arith"}
    text = written(tmp_path / "run", metrics={}, settings=settings, lineage={})
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert data.base_model is None
    assert data.eval_results is None
    assert "The model was not tested after training." in text
    assert "```bash\n\n```" not in text


def test_a_model_card_names_the_whole_method(tmp_path: Path) -> None:
    arm = {"model": "qwen", "mask": "all", "weighting": "uniform", "loss": "gem", "loss.token_loss.beta": 0.3}
    told = "mask all, weighting uniform, loss gem, loss.token_loss.beta 0.3, loss.normalizer critical |"
    assert told in written(tmp_path / "run", arm=arm)


def test_a_model_card_says_each_part_of_the_method_once_and_no_part_that_there_is_not(tmp_path: Path) -> None:
    arm = {"model": "qwen", "mask": "all", "reference": "none", "groups": "none", "loss.normalizer": "critical"}
    (line,) = [line for line in written(tmp_path / "run", arm=arm).splitlines() if line.startswith("| loss on |")]
    assert line.endswith(": mask all, loss.normalizer critical |")


def test_every_card_and_the_page_tell_an_annotations_two_digests_apart_by_one_name_each(
    store: AnnotationStore, text: str, tmp_path: Path
) -> None:
    """Conditions: what it was made under, which stays while it grows. Contents: the rows that it holds."""
    manifest, link = store.manifest(), annotation_link(store.folder)
    conditions, contents = manifest["fingerprint_sha256"], link.fingerprint
    assert conditions != contents
    line = {"command": "", "inputs": [link.as_dict()]}
    data = {**results()["data"], "annotation": "tiny_arith", "fingerprint": conditions}
    trained = written(tmp_path / "run", data=data, lineage=line)
    split = {"rows": 1, "tokens": 1, "labels": 1, "weighted": False, "file": "data/x.parquet"}
    request = {"mask": {}, "seed": 0}
    exported = {
        "splits": {"train": split},
        "format": "labels",
        "facts": {"eligible_fraction": 0.5},
        "mask": "all",
        "tokenizer": "t",
    }
    made = {**exported, "request": request, "lineage": line}
    texts = [text, trained, export_card(made, manifest, Labels())]
    for one in texts:
        assert re.findall(r"^\| (?:annotation's )?conditions, SHA-256 \| (\w+) \|$", one, re.M) == [conditions]
        assert re.findall(r"^\| (?:annotation's )?contents, SHA-256 \| (\w+) \|$", one, re.M) == [contents]
        assert "fingerprint" not in one.split("## Contents")[0].split("## Results")[0].lower()
    evaluated = {"inputs": [{"kind": "checkpoint", "fingerprint": "c" * 64, "came_from": line}]}
    for name, entry in (("trained", line), ("evaluated", evaluated)):
        write_run(tmp_path / name, "a", arm("critical"), seed=0, correct=[1, 0], data=data, lineage=entry)
        facts = facts_of(compare(collect([tmp_path / name])))
        assert facts["annotation: conditions, SHA-256"] == conditions
        assert facts["annotation: contents, SHA-256"] == contents


def test_tokens_that_were_decoded_ahead_of_need_are_apart(
    store: AnnotationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They depend on how far the engine was ahead, so that the same command gives other numbers of them."""
    manifest, rows = store.manifest(), store.rows()[:20]
    monkeypatch.setattr(AnnotationStore, "rows", lambda self: rows)
    compute = {"solve_tokens": 1_000, "counterfactual_tokens": 20_000, "solve_seconds": 3.0}
    for more, told in (({}, "21,000"), ({"speculative_tokens": 300}, "21,000, and 300 ahead of need")):
        changed = {**manifest, "compute": {**compute, **more}}
        monkeypatch.setattr(AnnotationStore, "manifest", lambda self, changed=changed: changed)
        assert f"| tokens decoded | {told} |" in annotation_card(store)
