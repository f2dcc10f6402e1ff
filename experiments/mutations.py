"""Mutation tests: typical defects are planted one at a time in a copy of the project, and a named test must fail.

    python -m experiments.mutations            (minutes; exit status 1 if a defect goes unnoticed; list in experiments/mutants/)
    python -m experiments.mutations --only grader --jobs 1

First every named test runs on the unchanged copy, where it must pass. Processes are forked from one that has imported the
libraries, so that a run costs only the test itself; each job has its own copy.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import importlib
import os
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

import pytest

from experiments.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("cft", "conf", "experiments", "tests", "pyproject.toml")
LIBRARIES = ("torch", "transformers", "lightning.pytorch", "datasets", "hydra", "scipy.stats", "hypothesis", "tests")
LIMIT_S = 120  # a test that takes longer counts as not having noticed the defect
PASSED, FAILED, OTHERWISE = 0, 1, 3


class MutantError(Exception):
    """A mutant whose code no longer exists or is no longer unique; the message names it."""


def mutated(mutant: Mutant, source: str) -> str:
    """Insert the defect into `source`, the text of the mutant's module. The code is found by its syntax tree, so that moved
    lines and formatting do not matter.

    Raises:
        MutantError: The function, or `old` within it, does not exist, or `old` occurs more than once.
    """
    module, _, name = mutant.place.partition(":")
    scope: Any = ast.parse(source)
    for part in name.split("."):
        inner = [node for node in ast.walk(scope) if isinstance(node, _SCOPES) and node is not scope]
        scope = next((node for node in inner if node.name == part), None)
        if scope is None:
            raise MutantError(f"{mutant.name}: {module} has no {name} (looked for {part})")
    wanted = ast.parse(textwrap.dedent(mutant.old)).body
    if len(wanted) == 1 and isinstance(wanted[0], ast.Expr):
        found = [[node] for node in ast.walk(scope) if isinstance(node, ast.expr) and _same([node], [wanted[0].value])]
        new = f"({mutant.new})"
    else:
        found = [run for run in _runs(scope, len(wanted)) if _same(run, wanted)]
        new = textwrap.dedent(mutant.new)
    if len(found) != 1:
        raise MutantError(f"{mutant.name}: {mutant.place} holds {mutant.old!r} {len(found)} times, expected once")
    first, last = found[0][0], found[0][-1]
    lines = source.encode().splitlines(keepends=True)
    assert last.end_lineno is not None, "positions are those of parsed source"
    assert last.end_col_offset is not None
    start = sum(map(len, lines[: first.lineno - 1])) + first.col_offset
    end = sum(map(len, lines[: last.end_lineno - 1])) + last.end_col_offset
    text = textwrap.indent(new, " " * first.col_offset).lstrip().encode()
    return (source.encode()[:start] + text + source.encode()[end:]).decode()


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _same(found: Any, wanted: Any) -> bool:
    """Whether two syntax trees are equal, regardless of their positions."""
    if isinstance(found, list):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    if not isinstance(found, ast.AST):
        return type(found) is type(wanted) and found == wanted
    fields = found._fields
    return type(found) is type(wanted) and all(_same(getattr(found, f, None), getattr(wanted, f, None)) for f in fields)


def _runs(scope: ast.AST, length: int) -> Iterator[list[Any]]:
    """All sequences of `length` consecutive statements in a block of `scope`."""
    for node in ast.walk(scope):
        for block in (getattr(node, field, None) for field in ("body", "orelse", "finalbody")):
            if isinstance(block, list):
                yield from (block[i : i + length] for i in range(len(block) - length + 1))


def module_path(mutant: Mutant) -> str:
    return mutant.place.partition(":")[0].replace(".", "/") + ".py"


@dataclass(slots=True)
class Watched:
    """A pytest plugin that records the result of the test itself, separate from errors in its setup."""

    passed: int = 0
    failed: int = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.passed += report.passed
            self.failed += report.failed


def forked(test: str, copy: Path) -> int:
    """Start a process that runs one test in `copy`; returns its id. It exits with PASSED, FAILED or OTHERWISE."""
    child = os.fork()
    if child:
        return child
    with (copy / "output.txt").open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    status = OTHERWISE
    try:
        os.setsid()  # so that its child processes end with it
        os.chdir(copy)
        os.environ["PYTHONPATH"] = str(copy)
        sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(ROOT), str(copy)))]
        for name in [name for name in sys.modules if name.split(".")[0] in ("cft", "experiments", "tests")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        watched = Watched()
        options = [
            "-q",
            "-x",
            "--no-header",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
        ]
        pytest.main([*options, test], plugins=[watched])
        status = FAILED if watched.failed else PASSED if watched.passed else OTHERWISE
        sys.stdout.flush()
    finally:
        os._exit(status)


@dataclass(frozen=True, slots=True)
class Task:
    """A test to run in a copy: on the unchanged source, or with a mutant in it."""

    test: str
    mutant: Mutant | None = None


def run_all(tasks: Sequence[Task], copies: Sequence[Path], *, done: Callable[[Task, int, float, str], None]) -> None:
    """Run all tasks, one per copy at a time. done: called with (task, status, seconds, output)."""
    waiting, free = list(reversed(tasks)), list(copies)
    running: dict[int, tuple[Task, Path, float]] = {}
    while waiting or running:
        while waiting and free:
            task, copy = waiting.pop(), free.pop()
            if task.mutant:
                path = copy / module_path(task.mutant)
                path.write_text(mutated(task.mutant, path.read_text(encoding="utf-8")), encoding="utf-8")
            running[forked(task.test, copy)] = (task, copy, time.monotonic())
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            late = [pid for pid, (_, _, since) in running.items() if time.monotonic() - since > LIMIT_S]
            for pid in late:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.02)
            continue
        task, copy, since = running.pop(child)
        if task.mutant:
            shutil.copyfile(ROOT / module_path(task.mutant), copy / module_path(task.mutant))
        free.append(copy)
        code = os.waitstatus_to_exitcode(status)
        output = (copy / "output.txt").read_text(encoding="utf-8", errors="replace")
        done(task, code, time.monotonic() - since, output)


def copy_to(folder: Path) -> Path:
    """Copy what the tests need. Byte code is validated by content, since a mutant may have the same size and time as the
    original."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "outputs", "results")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copyfile(ROOT / name, folder / name)
    compileall.compile_dir(folder / "cft", quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Plants typical defects one at a time; a named test must detect each.")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only mutants whose name, place or test contains the text"
    )
    parser.add_argument("--jobs", type=int, default=2, help="tests at a time (2)")
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if arguments.only in f"{m.name} {m.place} {m.test}"]
    lost, sound = [], []
    for mutant in chosen:
        try:
            mutated(mutant, (ROOT / module_path(mutant)).read_text(encoding="utf-8"))
            sound.append(mutant)
        except (MutantError, OSError) as error:
            print(f"LOST       {error}", flush=True)
            lost.append(mutant)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.dont_write_bytecode = True
    for library in LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory() as folder:
        copies = [copy_to(Path(folder) / str(job)) for job in range(max(1, arguments.jobs))]
        failing: set[str] = set()
        unnoticed: list[str] = []

        def untouched(task: Task, status: int, seconds: float, output: str) -> None:
            if status != PASSED:
                failing.add(task.test)
                print(f"FAILS ALONE  {task.test}\n{textwrap.indent(output[-2000:], '    ')}", flush=True)

        def told(task: Task, status: int, seconds: float, output: str) -> None:
            assert task.mutant is not None
            noticed = status == FAILED
            print(
                f"{'noticed  ' if noticed else 'UNNOTICED'}  {task.mutant.name}  <-  {task.test}  {seconds:.1f} s",
                flush=True,
            )
            if not noticed:
                unnoticed.append(task.mutant.name)
                print(textwrap.indent(output[-600:], "    "), flush=True)

        began = time.monotonic()
        run_all([Task(test) for test in dict.fromkeys(m.test for m in sound)], copies, done=untouched)
        run_all([Task(m.test, m) for m in sound if m.test not in failing], copies, done=told)
    good = len(chosen) - len(lost) - len(unnoticed) - sum(m.test in failing for m in sound)
    print(f"{good} of {len(chosen)} noticed, in {(time.monotonic() - began) / 60:.1f} minutes")
    raise SystemExit(0 if good == len(chosen) > 0 else 1)


if __name__ == "__main__":
    main()
