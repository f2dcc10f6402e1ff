"""Prints a table of figures about the size and structure of the code.

python -m experiments.code_figures [another checkout ...]
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
from pathlib import Path

OF_LIBRARIES = re.compile(r"\b(?:trainer|strategy|loop\w*|fabric|Hydra|GlobalHydra|hydra)\b[\w.()]*\._[a-z]")


def figures(root: Path) -> dict[str, int | float]:
    """Of one checkout."""
    source, tests = (sorted((root / folder).rglob("*.py")) for folder in ("cft", "tests"))
    text = {file: file.read_text(encoding="utf-8") for file in (*source, *tests)}
    lines = {file: len(content.splitlines()) for file, content in text.items()}
    functions = {file: functions_of(text[file]) for file in source}
    lengths = [(f.end_lineno or f.lineno) - f.lineno + 1 for found in functions.values() for f in found]
    total = sum(lines[file] for file in source)
    outside = [file for file in source if file.relative_to(root / "cft").parts[0] not in ("config", "cli")]
    return {
        "source files": len(source),
        "source lines": total,
        "source files over 350 lines": sum(lines[file] > 350 for file in source),
        "functions per 1,000 lines": round(1000 * len(lengths) / total, 1),
        "median lines of a function": statistics.median(lengths),
        "modules directly in cft/": sum(file.parent.name == "cft" and file.name != "__init__.py" for file in source),
        "signatures with a raw config outside config/ and cli/": sum(
            takes_raw_config(f) for file in outside for f in functions[file]
        ),
        "files with private attributes of Lightning or Hydra": sum(
            bool(OF_LIBRARIES.search(text[file])) for file in source
        ),
        "test files": len(tests),
        "test lines": sum(lines[file] for file in tests),
        "README lines": len((root / "README.md").read_text(encoding="utf-8").splitlines()),
    }


def functions_of(source: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def takes_raw_config(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    given = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return any("DictConfig" in ast.unparse(a.annotation) for a in given if a.annotation)


def main() -> None:
    parser = argparse.ArgumentParser(description="Size and structure of the code.")
    parser.add_argument("checkout", type=Path, nargs="*", default=[Path(__file__).resolve().parent.parent])
    columns = [figures(root) for root in parser.parse_args().checkout]
    for name in columns[0]:
        print(f"{name:<56}", *(f"{column[name]:>10,}" for column in columns))


if __name__ == "__main__":
    main()
