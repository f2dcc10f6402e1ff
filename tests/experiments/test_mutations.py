"""Every mistake of `make mutations` still finds its place, once, and its test; what notices it is for that run to show."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from experiments.mutants import MUTANTS, Mutant
from experiments.mutations import MutantError, module_path, mutated

SOURCE = """
class A:
    def f(self, x):
        if x == 1:
            y = x + 1
            return y  # twice
        return x


def f(x):
    return g(x,
             1)
"""


@cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.parse(text(path)).body if isinstance(node, ast.FunctionDef)}


def test_every_mutant_finds_its_place_and_its_test(root: Path) -> None:
    for mutant in MUTANTS:
        source = text(root / module_path(mutant))
        changed = mutated(mutant, source)
        assert changed != source, mutant.name
        ast.parse(changed)
        file, _, test = mutant.test.partition("::")
        assert test.partition("[")[0] in functions_of(root / file), mutant.test
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40


def made(place: str, old: str, new: str) -> str:
    return mutated(Mutant("m", f"a.b:{place}", old, new, ""), SOURCE)


def test_a_place_is_found_by_its_function_and_its_syntax() -> None:
    assert made("A.f", "x == 1", "x != 1").count("if (x != 1):") == 1
    assert made("A.f", "y = x + 1; return y", "y = 2\nreturn y") == SOURCE.replace("y = x + 1", "y = 2")
    assert "return (x)" in made("f", "g(x, 1)", "x")


@pytest.mark.parametrize(
    "place, old, message",
    [
        ("B.f", "x", "a.b has no B.f"),
        ("A.g", "x", "a.b has no A.g"),
        ("A.f", "z", "'z' 0 times"),
        ("A.f", "x", "'x' 3 times"),
    ],
)
def test_a_place_that_is_gone_or_not_unique_is_named(place: str, old: str, message: str) -> None:
    with pytest.raises(MutantError, match=f"m: .*{message}"):
        made(place, old, "1")
