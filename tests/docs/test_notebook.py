"""The notebook of the documentation was executed as it stands, without an error, and gives the same results again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.notebook import NOTEBOOK, code_hash, executed


def cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def results(notebook: dict[str, Any]) -> list[str]:
    """What the cells evaluate to, and what they print but for progress."""
    found = [output for cell in cells(notebook) for output in cell["outputs"]]
    values = [output["data"]["text/plain"] for output in found if output["output_type"] == "execute_result"]
    return ["".join(value) for value in values]


def test_every_cell_was_executed_as_it_stands() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["metadata"]["cft"]["code"] == code_hash(notebook), "run `make notebook`"
    assert [cell["execution_count"] for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    kinds = {output["output_type"] for cell in cells(notebook) for output in cell["outputs"]}
    assert kinds == {"execute_result", "display_data", "stream"}  # no error among them
    assert len(results(notebook)) == len(cells(notebook)) - 1  # one prints


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("nbclient") is None, reason="pip install -e '.[notebook]'")
def test_it_gives_the_same_results_again(tmp_path: Path) -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert results(executed(notebook, folder=tmp_path)) == results(notebook)
