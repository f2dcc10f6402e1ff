"""Executes docs/guides/notebook.ipynb and writes its outputs into it:   make notebook

The documentation shows the notebook as stored (docs/hooks.py), so that its outputs are real. The hash of its code is kept in
its metadata, so that a test detects a changed cell that was not executed again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "guides" / "notebook.ipynb"
ROOT = NOTEBOOK.parent.parent.parent
TIMEOUT_S = 1800
_PROGRESS = re.compile(r"\| +\d+ s, about \S+ s left")


def code_hash(notebook: dict[str, Any]) -> str:
    """SHA-256 of the notebook's code cells."""
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256("\n\x1f".join(cells).encode()).hexdigest()


def executed(notebook: dict[str, Any], *, folder: Path) -> dict[str, Any]:
    """Execute the notebook in `folder`; returns it with outputs. Raises CellExecutionError."""
    import nbformat  # pyright: ignore[reportMissingImports] - from the extra `notebook`
    from nbclient import NotebookClient  # pyright: ignore[reportMissingImports]

    made = nbformat.reads(json.dumps(notebook), as_version=4)  # joins the lines of a cell
    client = NotebookClient(
        made, timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    found = json.loads(nbformat.writes(made))
    for cell in found["cells"]:
        cell.get("metadata", {}).pop("execution", None)  # wall-clock times
        if cell["cell_type"] == "code":
            cell["outputs"] = [output for output in cell["outputs"] if _clean(output, folder=folder)]
    found["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "cft": {"code": code_hash(found)},
    }
    return found


def _clean(output: dict[str, Any], *, folder: Path) -> bool:
    """Remove paths of the machine, terminal colors and progress lines from an output. Returns whether anything is left."""

    def text(value: Any) -> Any:
        if isinstance(value, list):
            return [text(inner) for inner in value]
        plain = re.sub(r"\x1b\[[0-9;]*m", "", value)
        return plain.replace(f"{folder}/", "").replace(str(folder), ".")

    if output["output_type"] == "stream":
        lines = "".join(text(output["text"])).splitlines(keepends=True)
        output["text"] = [line for line in lines if not _PROGRESS.search(line)]
        return output["name"] == "stdout" and any(line.strip() for line in output["text"])
    if output["output_type"] == "display_data":  # colored console output
        output["data"] = {kind: value for kind, value in output["data"].items() if kind == "text/plain"}
    for kind in output.get("data", {}):
        output["data"][kind] = text(output["data"][kind])
    return True


def main() -> None:
    argparse.ArgumentParser(description="Executes the notebook of the guides.").parse_args()
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        made = executed(notebook, folder=Path(folder).resolve())
    NOTEBOOK.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{NOTEBOOK.relative_to(ROOT)}: {sum(cell['cell_type'] == 'code' for cell in made['cells'])} cells executed")


if __name__ == "__main__":
    main()
