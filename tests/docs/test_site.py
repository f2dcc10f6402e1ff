"""The generated pages hold every group and option, the navigation every page, and a dead link is found."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from cft.shipped import CONF_DIR
from tests.conftest import ROOT

pytest.importorskip("mkdocs")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_file_of_conf_is_on_a_page(hooks: ModuleType) -> None:
    pages = [hooks._config_index(), *map(hooks._group_page, hooks.groups())]
    shown = {path.relative_to(ROOT).as_posix() for path in CONF_DIR.rglob("*.yaml")}
    assert [name for name in shown if not any(f'title="{name}"' in page for page in pages)] == []


def test_every_module_is_on_a_page(hooks: ModuleType) -> None:
    pages = "\n".join([hooks._api_index(), *map(hooks._api_page, hooks.packages())]).splitlines()
    modules = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in (ROOT / "cft").rglob("*.py")
        if not path.name.startswith("_")
    ]
    assert [name for name in modules if f"::: {name}" not in pages] == []


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = {line.split()[-1] for line in nav.splitlines() if line.endswith(".md")}
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert written | {"reference/methods.md", "guides/notebook.md"} == named
    assert yaml.safe_load("nav:" + nav)["nav"]


@pytest.mark.parametrize(
    ("link", "dead"),
    [
        ("b.html", False),
        ("b.html#here", False),
        ("b.html#gone", True),
        ("gone.html", True),
        ("#top", False),
        ("#gone", True),
        ("folder/", False),
        ("https://example.org/gone", False),
    ],
)
def test_dead_links_are_found(link: str, dead: bool, tmp_path: Path, hooks: ModuleType) -> None:
    (tmp_path / "a.html").write_text(f'<p id="top"><a href="{link}">x</a></p>', encoding="utf-8")
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1>', encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text("", encoding="utf-8")
    assert hooks.dead_links(tmp_path) == ([f"a.html: {link}"] if dead else [])


def test_the_page_of_the_notebook_shows_what_its_cells_gave(hooks: ModuleType) -> None:
    page = hooks.notebook_page(ROOT / "docs" / "guides" / "notebook.ipynb")
    assert page.startswith("# From a notebook\n")
    assert "\n\n[The notebook itself](notebook.ipynb), executed by `make notebook`.\n\n```python\nimport cft\n" in page
    assert "annotation.counts()\n```\n\n```text\n" in page
    assert "{'problems': 48," in page
    assert '<div style="font-family:ui-monospace' in page
    assert "/tmp" not in page
    assert "/home" not in page
