"""Rows of benchmarks without an answer text: programs that must pass a test, responses that must follow instructions. The
gold answer is the test or the instructions as JSON, read by `verifier=code` and `verifier=instructions`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from cft.benchmarks.choice_rows import Parts, Row
from cft.data.problem_rows import BadRow, fields_found, read_field
from cft.verifiers.code import gold_of


def humaneval(row: Row) -> Parts:
    """A function signature to be completed, or rewritten whole. Other definitions before it belong to the test as well."""
    prompt, entry = read_field(row, "prompt"), read_field(row, "entry_point").strip()
    test = f"{read_field(row, 'test')}\n\ncheck(candidate)\n"
    gold = gold_of(before=prompt, setup=prompt, test=test, names=[entry], entry=entry)
    return prompt.strip(), gold, _optional(row, "canonical_solution")


def mbpp(row: Row) -> Parts:
    """A task in words with three assertions, which are part of the question as in the paper (arXiv 2108.07732). Both layouts:
    the full set (`text`, `test_setup_code`) and the sanitized one (`prompt`, `test_imports`). The names taken from the program
    are the functions and classes of the published solution that occur in the assertions."""
    task = read_field(row, "text" if "text" in row else "prompt").strip()
    asserts = row.get("test_list")
    if not isinstance(asserts, list) or not asserts or not all(isinstance(one, str) for one in asserts):
        raise BadRow(f"wrong type: test_list, expected a list of assertions ({fields_found(row)})")
    code, test = read_field(row, "code"), "\n".join(one.strip() for one in asserts)
    imports = row.get("test_imports")
    needed = [*imports, *_imports(code)] if isinstance(imports, list) else _imports(code)
    setup = _optional(row, "test_setup_code")
    names = [name for name in _defined(code) if name in _named(f"{setup}\n{test}")]
    if not names:
        raise BadRow("wrong code: no function or class of it is in test_list")
    question = f"{task}\nYour code should pass these tests:\n\n{test}\n"
    # Code of the setup that uses the program's classes is part of the test.
    gold = gold_of(setup="\n".join(dict.fromkeys(needed)), test=f"{setup}\n{test}\n".lstrip("\n"), names=names)
    return question.strip(), gold, code


def ifeval(row: Row) -> Parts:
    """A request with instructions that a program can check: their ids, and an argument list for each."""
    ids, arguments = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(ids, list) or not ids or not isinstance(arguments, list) or len(ids) != len(arguments):
        raise BadRow(f"wrong type: instruction_id_list and kwargs, expected lists of one length ({fields_found(row)})")
    if not all(isinstance(one, Mapping) for one in arguments) or not all(isinstance(one, str) for one in ids):
        raise BadRow("wrong type: kwargs, expected a table for each of instruction_id_list")
    # The published table has a column for every argument of every instruction; unused ones are null.
    given = [{key: _plain(value) for key, value in one.items() if value is not None} for one in arguments]
    return read_field(row, "prompt").strip(), json.dumps([list(pair) for pair in zip(ids, given, strict=True)]), ""


def _plain(value: Any) -> Any:
    """Numbers of files are `Number` or float; counts are whole."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, str):
        try:
            return int(float(value)) if type(value) is not str else value
        except ValueError:
            return str(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parsed(code: str) -> list[ast.stmt]:
    try:
        return ast.parse(code.replace("\r\n", "\n")).body
    except (SyntaxError, ValueError) as error:
        raise BadRow(f"wrong code: {error.__class__.__name__}") from None


def _defined(code: str) -> list[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in _parsed(code) if isinstance(node, kinds)]


def _named(code: str) -> set[str]:
    return {node.id for statement in _parsed(code) for node in ast.walk(statement) if isinstance(node, ast.Name)}


def _imports(code: str) -> list[str]:
    return [ast.unparse(node) for node in _parsed(code) if isinstance(node, ast.Import | ast.ImportFrom)]


def _optional(row: Row, name: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) else ""
