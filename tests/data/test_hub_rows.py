"""Rows that `datasets` loads: from a folder as it is now, and from a hub at the revision, config and split asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cft.data.hub_rows import hub_rows
from tests.reading_hub import commit_of, reading_hub

README = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: data/train.jsonl}\n---\n"
CONFIGS = (
    "---\nconfigs:\n"
    "- config_name: main\n  default: true\n  data_files:\n"
    "  - {split: train, path: main/train.jsonl}\n  - {split: test, path: main/test.jsonl}\n"
    "- config_name: socratic\n  data_files:\n  - {split: train, path: socratic/train.jsonl}\n---\n"
)


def lines(*questions: str) -> str:
    return "".join(json.dumps({"question": question, "answer": "1"}) + "\n" for question in questions)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def questions(path: Path | str, **chosen: str) -> list[str]:
    rows = hub_rows(str(path), **{"config": "", "revision": "", "split": "train", **chosen})
    return [row.value["question"] for row in rows if row.value is not None]


def test_a_folder_is_read_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as it was, and not as another one of its name: its README makes `datasets` take them for the same."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    first = write(tmp_path / "a" / "labels", {"README.md": README, "data/train.jsonl": lines("a", "b", "c")})
    other = write(tmp_path / "b" / "labels", {"README.md": README, "data/train.jsonl": lines("d", "e")})
    assert questions(first) == ["a", "b", "c"]
    assert questions(other) == ["d", "e"]
    write(first, {"data/train.jsonl": lines("f")})
    assert questions(first) == ["f"]


def test_a_readme_names_configs_and_splits(tmp_path: Path) -> None:
    texts = {"main/train.jsonl": lines("a"), "main/test.jsonl": lines("b"), "socratic/train.jsonl": lines("c")}
    folder = write(tmp_path / "set", {"README.md": CONFIGS, **texts})
    assert questions(folder) == ["a"]
    assert questions(folder, split="test") == ["b"]
    assert questions(folder, config="socratic") == ["c"]


NEW = {
    "README.md": CONFIGS,
    "main/train.jsonl": lines("a", "b"),
    "main/test.jsonl": lines("t"),
    "socratic/train.jsonl": lines("c"),
}
OLD = {"README.md": README, "data/train.jsonl": lines("old")}
MAIN, V1 = commit_of("main"), commit_of("v1")
READ = """
import json, sys, warnings
from cft.data.hub_rows import hub_rows

def read(path="lab/set", config="", revision="", split="train"):
    with warnings.catch_warnings(record=True) as said:
        try:
            rows = hub_rows(path, config=config, revision=revision, split=split)
            return [[row.place, row.value["question"]] for row in rows] + [str(one.message) for one in said]
        except Exception as error:
            return f"{type(error).__name__}: {error}"

print(json.dumps({name: read(**one) for name, one in json.loads(sys.argv[1]).items()}))
"""


def read(asked: dict[str, dict[str, str]], **environment: str) -> dict[str, Any]:
    """What a process of its own reads: rows and warnings, or an error."""
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(asked)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_hub_is_asked_for_revision_config_and_split(tmp_path: Path) -> None:
    asked = {
        "default": {},
        "test": {"split": "test"},
        "config": {"config": "socratic"},
        "tag": {"revision": "v1"},
        "commit": {"revision": V1},
        "validation": {"split": "validation"},
        "other": {"config": "other"},
        "v9": {"revision": "v9"},
        "lab/other": {"path": "lab/other"},
    }
    with reading_hub("lab/set", {"main": NEW, "v1": OLD}) as endpoint:
        found = read(asked, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0")
    assert found["default"] == [["lab/set[train] row 0", "a"], ["lab/set[train] row 1", "b"]]
    assert found["test"] == [["lab/set[test] row 0", "t"]]
    assert found["config"] == [["lab/set[train] row 0", "c"]]
    assert found["tag"] == found["commit"] == [["lab/set[train] row 0", "old"]]
    for name in ("validation", "other", "v9", "lab/other"):
        assert found[name].startswith("ProblemError: cannot load data set 'lab/"), found[name]
        assert name in found[name]
        assert "Check the names and the network" in found[name]


@pytest.mark.slow
def test_without_the_hub_the_cache_gives_no_other_revision(tmp_path: Path) -> None:
    """`datasets` would give the rows that were cached last, whatever the revision."""
    revisions = {"main": {**OLD, "data/train.jsonl": lines("new")}, "v1": OLD}
    environment = {"HF_HOME": str(tmp_path)}
    with reading_hub("lab/set", revisions) as endpoint:
        environment["HF_ENDPOINT"] = endpoint
        cached = read({"main": {}, "v1": {"revision": "v1"}}, **environment, HF_HUB_OFFLINE="0")
    assert cached == {"main": [["lab/set[train] row 0", "new"]], "v1": [["lab/set[train] row 0", "old"]]}
    asked = {"newest": {}, "v1": {"revision": "v1"}, "commit": {"revision": V1}, "other": {"revision": MAIN}}
    found = read(asked, **environment, HF_HUB_OFFLINE="1")
    assert found["commit"] == [["lab/set[train] row 0", "old"]]
    rows, said = found["newest"]
    assert rows == ["lab/set[train] row 0", "old"]
    assert f"the hub cannot be reached, so the rows are those of the latest commit in the cache, {V1}" in said
    assert f"expected revision '{MAIN}'" in found["other"]
    assert f"the latest commit in the cache is {V1}" in found["other"]
    assert "expected revision 'v1'" in found["v1"]
