"""What this machine lacks is said before anything heavy is imported, and without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cft.cli.job import composed
from cft.config.preflight import missing_inputs, unwritable
from tests.conftest import ROOT
from tests.entry import FIT_ONLY, run

DRIVER = """
import runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print([name for name in ("lightning", "transformers") if name in sys.modules])
"""


def test_a_missing_annotation_and_run_are_found_before_the_heavy_imports(tmp_path: Path) -> None:
    arguments = ["train.py", "data.annotation=nowhere", f"resume={tmp_path}/none", "model.path=gone/model/"]
    code = f"import sys; sys.argv = {[str(ROOT / arguments[0]), *arguments[1:]]!r}\n{DRIVER}"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == "[]\n"
    annotation, model, resume = ended.stderr.splitlines()
    assert annotation.startswith("data.annotation=nowhere: no manifest.json in outputs/annotations/nowhere or ")
    assert "Known annotations: tiny_arith" in annotation
    assert model.startswith("model.path=gone/model/: no such folder, and not a hub id")
    assert resume.startswith(f"resume={tmp_path}/none: no {tmp_path}/none/config.yaml; expected the folder of a run")


@pytest.mark.parametrize("folder", ["/proc/foo", "file/run"])
def test_an_output_folder_that_cannot_be_made_is_a_mistake(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    for argument in (f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"):
        ended = run("train", *FIT_ONLY, argument, *(["-m"] if "sweep" in argument else []))
        assert ended.status == 2
        assert "Traceback" not in ended.text
        assert f"{argument.partition('=')[0]}: {folder} cannot be made" in ended.text
    assert os.listdir() == ["file"]


def test_a_folder_that_can_be_made_is_left_unmade(tmp_path: Path) -> None:
    assert unwritable(str(tmp_path / "a" / "b")) == ""
    assert list(tmp_path.iterdir()) == []


def test_an_accelerator_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for asked in ("gpu", "cuda", "mps"):
        ((key, text),) = missing_inputs({"trainer": {"accelerator": asked}})
        assert key == "trainer.accelerator"
        assert "trainer=default" in text
    for asked in ("cpu", "auto"):
        assert list(missing_inputs({"trainer": {"accelerator": asked}})) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for asked in ("gpu", "cuda"):
        assert list(missing_inputs({"trainer": {"accelerator": asked}})) == []


@pytest.mark.parametrize("key", ["data", "benchmark"])
def test_files_of_problems_are_read_in_advance(key: str, tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    node = composed("annotate", ["data=jsonl", f"data.path={file}"], check=False)[0]
    tree = {key: node.data.node}
    assert list(missing_inputs(tree)) == [
        ("", f"{key}.path='{file}': no such file; expected a file with one JSON object per line")
    ]
    file.write_text('{"question": "1 + 1?"}\n')
    ((_, text),) = missing_inputs(tree)
    assert f"{file}: 1 of 1 rows cannot be used. First: problems.jsonl:1: missing field: answer" in text


def test_a_checkpoint_that_is_not_there_and_a_file_that_a_suite_lacks(tmp_path: Path) -> None:
    ((key, text),) = missing_inputs({"checkpoint": "gone", "model": {"path": "also/gone/"}})
    assert key == "checkpoint=gone"
    assert text.startswith("neither a run folder of cft train or cft rl")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    assert list(missing_inputs({"checkpoint": str(tmp_path)})) == []
    config = composed("evaluate", ["benchmark=math500", f"data.dir={tmp_path}"], check=False)[0]
    suite = {"_target_": "cft.benchmarks.suite", "name": "two", "members": {"math500": config.benchmark.node}}
    ((_, text),) = missing_inputs({"benchmark": suite})
    assert text.startswith(f"data.dir={tmp_path}: benchmark math500 found none of {tmp_path}/math500.jsonl")
