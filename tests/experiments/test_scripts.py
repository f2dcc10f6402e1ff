"""Scripts in experiments/ say what they do before they do anything."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(p for p in (ROOT / "experiments").glob("*.py") if "__main__" in p.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_reads_its_arguments_with_argparse(path: Path) -> None:
    """As the first of what it does, or in a function: `--help` must start nothing."""
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert "parse_args" in {call.attr for call in calls if isinstance(call, ast.Attribute)}


def test_help_of_the_demo_starts_and_deletes_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "outputs" / "demo" / "report.html"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    command = [sys.executable, "-m", "experiments.demo", "--help"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0
    assert "usage:" in ended.stdout
    assert kept.read_text() == "mine"
