"""Signatures and true names read from source alone: re-exports, inheritance, dataclasses, annotations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from cft.config.annotations import type_of
from cft.config.source import TargetError, resolve, signature
from cft.ranges import describe, fits, mismatch

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of a new name with the ways in which a name can lead elsewhere."""
    name = "lab_" + tmp_path.name.replace("-", "_")
    files = {
        "__init__.py": "from .inner import Plain as Renamed\nfrom .inner import *\nfrom . import inner\n",
        "inner/__init__.py": "from .deep import Plain, Child, function\nfrom ..other import Spec\nimport os\n",
        "inner/deep.py": """
            from __future__ import annotations
            import functools
            from dataclasses import dataclass, field, KW_ONLY
            from typing import TYPE_CHECKING, ClassVar, Literal, Optional, Union
            from ..other import Base, Mode
            if TYPE_CHECKING:
                from ..other import Size

            Alias = Plain = None

            class Plain:
                def __init__(self, model, *, size: Size, mode: Mode = "a", name: "str | None" = None): ...

            class Child(Base): ...

            class Generic_(Base[int], metaclass=type): ...

            @dataclass(frozen=True, kw_only=True)
            class Keywords:
                a: int
                b: float = 1.0
                c: ClassVar[int] = 3
                d: list[str] = field(default_factory=list)
                e: int = field(init=False, default=0)

            @dataclass
            class Heir(Keywords):
                f: str = ""
                _: KW_ONLY
                g: str

            @functools.wraps(print)
            def function(x, y=1, /, *rest, z): ...

            def greedy(*, a, **kwargs): ...

            value = 3
        """,
        "other.py": """
            from typing import Literal, Union
            Mode = Literal["a", "b"]
            Size = Union[int, Literal["all"]]
            class Base:
                def __init__(self, *, depth: int): ...
            from .spec import Spec
        """,
        "spec.py": "from subprocess import run\nclass Spec: ...\n",
    }
    for path, text in files.items():
        file = tmp_path / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def parameters(target: str) -> list[tuple[str, bool, bool]]:
    read = signature(resolve(target))
    assert read is not None
    return [(p.name, p.keyword_only, p.required) for p in read.parameters]


@pytest.mark.parametrize(
    ("name", "true_name"),
    [
        ("Renamed", "inner.deep.Plain"),
        ("Child", "inner.deep.Child"),
        ("Spec", "spec.Spec"),
        ("inner.Spec", "spec.Spec"),
        ("function", "inner.deep.function"),
        ("inner.deep.Mode", "other.Mode"),
    ],
)
def test_a_name_is_followed_to_its_definition(package: str, name: str, true_name: str) -> None:
    assert resolve(f"{package}.{name}").full_name == f"{package}.{true_name}"
    assert package not in sys.modules


def test_a_borrowed_function_keeps_its_own_name(package: str) -> None:
    assert resolve(f"{package}.spec.run").full_name == "subprocess.run"


@pytest.mark.parametrize(
    "name", ["Nothing", "inner.Nothing", "nothing.Plain", "inner.deep.Plain.method", "inner..x", "inner.deep.Size"]
)
def test_a_name_that_leads_nowhere_is_an_error(package: str, name: str) -> None:
    """Size is there for the type checker only."""
    with pytest.raises(TargetError):
        resolve(f"{package}.{name}")


def test_a_walk_through_a_module_is_no_definition(package: str) -> None:
    assert resolve(f"{package}.inner.os.system").kind == "unreadable"


def test_candidates_hold_the_near_name(package: str) -> None:
    with pytest.raises(TargetError) as error:
        resolve(f"{package}.inner.deep.Chidl")
    assert f"{package}.inner.deep.Child" in error.value.candidates
    with pytest.raises(TargetError) as error:
        resolve(f"{package}.othr.Base")
    assert f"{package}.other.Base" in error.value.candidates


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("inner.deep.Plain",
         [("model", False, True), ("size", True, True), ("mode", True, False), ("name", True, False)]),
        ("inner.deep.Child", [("depth", True, True)]),
        ("inner.deep.Generic_", [("depth", True, True)]),
        ("inner.deep.Keywords", [("a", True, True), ("b", True, False), ("d", True, False)]),
        ("inner.deep.Heir",
         [("f", False, False), ("a", True, True), ("b", True, False), ("d", True, False), ("g", True, True)]),
        ("inner.deep.function", [("x", False, True), ("y", False, False), ("z", True, True)]),
        ("spec.Spec", []),
    ],
)  # fmt: skip
def test_parameters(package: str, name: str, expected: list[tuple[str, bool, bool]]) -> None:
    assert parameters(f"{package}.{name}") == expected


def test_any_keyword_and_no_signature(package: str) -> None:
    greedy = signature(resolve(f"{package}.inner.deep.greedy"))
    assert greedy is not None
    assert greedy.takes_any_keyword
    assert signature(resolve(f"{package}.inner.deep.value")) is None
    assert resolve(f"{package}.inner.deep.value").kind == "value"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("size", [3, "all"], ["some", 2.5, None, True, []]),
        ("mode", ["a", "b"], ["c", None, 1]),
        ("name", ["x", None], [3, ["x"], False]),
        ("model", [3, None, "x", {}], []),
    ],
)
def test_values_against_annotations(package: str, name: str, good: list[object], bad: list[object]) -> None:
    read = signature(resolve(f"{package}.inner.deep.Plain"))
    assert read is not None
    hint = type_of(next(p for p in read.parameters if p.name == name).annotation)
    assert [mismatch(v, hint) for v in good] == [None] * len(good)
    assert None not in [mismatch(v, hint) for v in bad]


@pytest.mark.parametrize(
    ("annotation", "text", "good", "bad"),
    [
        ("int", "an integer", [0, -3], [1.0, True, "1", None, 2**63]),
        ("float", "a finite number", [0, 1.5], [True, "1.5", float("nan"), float("inf")]),
        ("bool", "true or false", [True, False], [0, "true"]),
        ("list[int]", "a list, each an integer", [[], [1, 2]], [1, [1, "x"], {}]),
        ("tuple[float, float]", "a list of 2, each a number", [[1, 2.5]], [[1], [1, 2, 3], 1]),
        ("tuple[str, ...]", "a list, each text", [[], ["a"]], [[1]]),
        ("dict[str, int]", "a mapping", [{}, {"a": 1}], [{"a": "x"}, []]),
        ("Literal[1, 'auto', None]", "one of 1, auto, null", [1, "auto", None], [True, 2, "1"]),
        ("Literal[-1]", "-1", [-1], [1, None]),
        ("Optional[Union[int, str]]", "an integer or text or null", [1, "x", None], [1.5]),
        ("Unheard", "anything", [1, None, {}], [float("nan"), [float("inf")]]),
        ("int | Unheard", "anything", ["x"], []),
        ("Base", "a node with a _target_ that makes a Base", [{"_target_": "x"}], ["x", 3, None, {}]),
        ("Share", "a number from 0 to 1", [0, 1, 0.5], [-0.1, 1.1, "0.5", True]),
        ("Share | None", "a number from 0 to 1 or null", [0, None], [2]),
        ("Annotated[int, Field(ge=2)]", "an integer of at least 2", [2], [1, 2.5]),
        ("Annotated[int, 'a note']", "an integer", [2], ["x"]),
    ],
)
def test_annotations_of_every_simple_kind(
    package: str, tmp_path: Path, annotation: str, text: str, good: list[object], bad: list[object]
) -> None:
    file = tmp_path / package / "one.py"
    head = "from typing import *\nfrom typing import Annotated, Literal, Optional, Union\nfrom pydantic import Field\n"
    head += "from .other import Base\nShare = Annotated[float, Field(ge=0, le=1)]\n"
    file.write_text(f"{head}def made(*, it: {annotation}): ...\n")
    read = signature(resolve(f"{package}.one.made"))
    assert read is not None
    hint = type_of(read.parameters[0].annotation)
    assert describe(hint).replace("a number", "a finite number" if annotation == "float" else "a number") == text
    assert all(fits(v, hint) for v in good)
    assert not any(fits(v, hint) for v in bad)


@pytest.mark.parametrize(
    ("argument", "code"), [("Field(ge=int(__import__('os').getpid()))", "computed"), ("Field(ge=UNKNOWN)", "a name")]
)
def test_the_arguments_of_a_range_are_never_run(package: str, tmp_path: Path, argument: str, code: str) -> None:
    (tmp_path / package / "one.py").write_text(
        f"from typing import Annotated\nfrom pydantic import Field\ndef made(*, it: Annotated[int, {argument}]): ...\n"
    )
    read = signature(resolve(f"{package}.one.made"))
    assert read is not None
    assert type_of(read.parameters[0].annotation) is int


def test_reading_libraries_imports_none_of_them() -> None:
    code = """
        import sys
        from cft.config.source import resolve, signature
        found = {}
        for name in ("lightning.pytorch.Trainer", "torch.optim.AdamW", "torch.optim.SGD", "torch.nn.Linear"):
            found[name] = len(signature(resolve(name)).parameters)
        print(found["lightning.pytorch.Trainer"] > 30, found["torch.optim.AdamW"], found["torch.nn.Linear"])
        print([m for m in ("torch", "lightning", "transformers", "numpy") if m in sys.modules])
    """
    result = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.splitlines() == ["True 11 5", "[]"]
