"""Faults of the user's rows that need no tokenizer are found before anything heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cft.data.first_look import faults
from cft.shipped import CONF_DIR
from tests.data.test_rows import OPTIONS
from tests.entry import run
from tests.given_rows import SHAPES, rows, write

GOOD = {"prompt": "2?", "completion": "4"}
PAIR = {"prompt": "2?", "chosen": "4", "rejected": "5"}
MESSAGES = [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "4", "weight": "x"}]


def look(path: Path, *, annotated: bool = False, compared: bool = False, chat: bool = True, **options: Any) -> str:
    keys = {**OPTIONS, "path": str(path), **options}
    return faults(keys, annotated=annotated, compared=compared, chat=chat)


@pytest.mark.parametrize("shape", SHAPES)
def test_sound_rows_have_no_fault(shape: str, tiny_arith_path: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    brought = rows(shape, tokenizer=AutoTokenizer.from_pretrained(tiny_arith_path), count=3)
    assert look(write(tmp_path / "rows.jsonl", brought)) == ""


@pytest.mark.parametrize(
    ("value", "options", "reason"),
    [
        ({"messages": MESSAGES}, {}, "bad weight: weight of message 1 is str"),
        ({"input_ids": [1, 2], "labels": [2]}, {}, "columns of several lengths"),
        ({"segments": [{"text": "4"}]}, {}, "no weight: segment 0 has neither weight nor a label"),
        (GOOD, {"id_field": "id"}, "missing field: id"),
        (PAIR, {}, "a preference: chosen and rejected"),
        (GOOD, {"compared": True}, "no preference: expected prompt, chosen and rejected"),
        ({**PAIR, "rejected": []}, {"compared": True}, "nothing to compare: rejected is empty"),
        (
            {**PAIR, "rejected": "4"},
            {"compared": True},
            "nothing to compare: a rejected response equals the chosen one",
        ),
        ({**PAIR, "rejected": ["5", "4"]}, {"compared": True}, "nothing to compare: a rejected response equals"),
        (
            {"messages": [{**MESSAGES[1], "weight": 1}]},
            {"chat": False},
            "messages need a chat template: set prompt=chat",
        ),
        ({"input_ids": [1, 2], "labels": [1, 2]}, {"annotated": True}, "nothing to annotate"),
        ({"messages": [{"role": "user", "content": "4"}]}, {"annotated": True}, "no turn of assistant"),
    ],
)
def test_a_fault_is_named_with_its_place(
    value: Mapping[str, Any], options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    good = PAIR if options.get("compared") else {**GOOD, "id": 1}
    path = write(tmp_path / "rows.jsonl", [good, value])
    found = look(path, **{**options, "max_bad_rows": 0.4})
    assert found.startswith(f"{path}: 1 of 2 rows cannot be used. First: rows.jsonl:2: {reason}"), found
    assert "50.00%, and at most 40.00% may be skipped (data.max_bad_rows)" in found
    assert look(path, **options, max_bad_rows=0.5) == ""
    assert look(path, **options, max_rows=1) == ""


def test_both_files_and_parquet_are_looked_at(tmp_path: Path) -> None:
    bad = tmp_path / "held_out.parquet"
    pq.write_table(pa.table({"prompt": ["2?", ""], "completion": ["4", "5"]}), bad)
    found = look(write(tmp_path / "rows.jsonl", [GOOD]), validation_path=str(bad))
    assert "held_out.parquet row 1: empty field: prompt" in found


def test_a_repaired_file_is_looked_at_again(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "2?"}])
    assert "no known shape" in look(path)
    assert look(write(path, [GOOD])) == ""


@pytest.mark.parametrize("stage", ["train", "score", "annotate", "evaluate"])
def test_a_command_names_the_row_before_it_imports_a_model(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n{broken\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "cft.cli.job", None)  # whose import is the first heavy one
    data = "benchmark=jsonl benchmark.path" if stage == "evaluate" else "data=rows data.path"
    more = {"train": ["mask=all"], "annotate": ["responses=given"]}.get(stage, [])
    ended = run(stage, *f"{data}={path}".split(), *more, "hydra.run.dir=run")
    assert ended.status == 2, ended.text
    assert "rows.jsonl:2: malformed JSON" in ended.text
    assert "Traceback" not in ended.text


def test_a_loss_that_compares_looks_for_preferences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", [GOOD])
    monkeypatch.chdir(tmp_path)
    ended = run(
        "train", "data=rows", f"data.path={path}", "mask=all", "loss=dpo", "reference=initial", "hydra.run.dir=r"
    )
    assert "no preference: expected prompt, chosen and rejected" in ended.text


def test_messages_need_a_prompt_with_a_chat_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "2?"}, {**MESSAGES[1], "weight": 1}]}]
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "cft.cli.job", None)
    ended = run("train", "data=rows", f"data.path={path}", "mask=all", "prompt=plain", "prompt.template='{question}'")
    assert "messages need a chat template: set prompt=chat" in ended.text


def test_it_is_light() -> None:
    heavy = ["torch", "lightning", "transformers", "datasets", "sympy"]
    code = f"import sys, cft.data.first_look; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_its_settings_are_those_of_the_yaml() -> None:
    keys = yaml.safe_load((CONF_DIR / "data" / "rows.yaml").read_text())
    assert {key for key in keys if not key.startswith("_")} == {*OPTIONS, "path"}


def test_of_a_large_file_only_the_first_rows_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cft.data.first_look.LARGEST_READ_AHEAD", 10)
    monkeypatch.setattr("cft.data.first_look._FIRST", 3)
    bad = {"prompt": "2?"}
    assert "3 of 3 rows cannot be used" in look(write(tmp_path / "bad.jsonl", [bad] * 5))
    assert look(write(tmp_path / "some.jsonl", [bad, bad, GOOD, bad, bad])) == ""
