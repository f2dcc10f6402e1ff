"""The report's folder: every file, figures that hold the data, a page that is safe, nothing of an earlier report."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cft.annotation.store import AnnotationStore
from cft.cli.report import run as main
from cft.masks import Critical
from cft.masks.base import RowMask
from cft.report.arms import Comparison
from cft.report.build import PAGE, build_report, written_by_a_report
from cft.report.compare import compare
from cft.report.figures import accuracy_figure, forest_figure, pdf_of, png_of, profile_figure
from cft.report.page import Explorer, PageTable, Section, write_page
from cft.report.read import collect
from cft.report.tokens import LEVELS, Evidence, legend, profile
from cft.types import AnnotatedResponse
from tests.fakes import row
from tests.results import HOSTILE, arm, read_csv, write_run


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.slow
def test_figures_are_images_that_change_with_the_data(comparison: Comparison, tmp_path: Path) -> None:
    for draw in (accuracy_figure, forest_figure):
        first, second = draw(comparison), draw(comparison)
        assert first is not None
        assert second is not None
        png, pdf = png_of(first), pdf_of(first)
        width, height = struct.unpack(">II", png[16:24])
        assert png.startswith(b"\x89PNG")
        assert width > 600
        assert height > 200
        assert pdf.startswith(b"%PDF")
        assert (png_of(second), pdf_of(second)) == (png, pdf)  # the same data, the same bytes
    write_run(tmp_path / "o", "a", arm("$\\frac{$"), seed=0, correct=[1, 0])  # a name that is no formula
    (other,) = compare(collect([tmp_path / "o"]))
    assert png_of(accuracy_figure(other)) != png_of(accuracy_figure(comparison))
    assert forest_figure(other) is None
    drawn = []
    for outcome in (0, 1):
        profiled, correlations = profile([row([1, 2], outcomes=[[0, 0], [outcome, 0]])], mask=Critical())
        drawn.append(png_of(profile_figure(profiled, responses=1, rank_correlation=correlations)))
    assert drawn[0] != drawn[1]


class Given(RowMask):
    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights

    def __call__(self, row: AnnotatedResponse) -> np.ndarray:
        return self.weights


def test_a_report_holds_every_file(
    tmp_path: Path, comparison: Comparison, hostile: tuple[AnnotatedResponse, np.ndarray]
) -> None:
    out = tmp_path / "out"
    one, mask = hostile
    evidence = Evidence([one] * 3, Given(mask), lambda ids: f"t{ids[0]}", most=2)
    page = build_report(out, comparisons=[comparison], evidence=evidence, title="T")
    figures = {
        f"{name}.{kind}"
        for name in ("comparison", "differences", "critical_tokens", "compute")
        for kind in ("png", "pdf")
    }
    tables = {f"{name}.csv" for name in ("comparison", "arms", "differences", "critical_tokens", "compute")}
    assert {path.name for path in out.iterdir()} == {
        *figures,
        *tables,
        "comparison.md",
        "comparison.tex",
        "report.html",
    }
    html = page.read_text(encoding="utf-8")
    images = [a["src"] for tag, a in Page(html).tags if tag == "img"]
    assert len(images) == 4
    assert all(image and image.startswith("data:image/png;base64,") for image in images)
    assert "The first 2 of 3 responses are here." in html


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_the_report_and_says_what_is_wrong(
    runs_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(runs_folder), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "random mask" in said.out
    assert str(tmp_path / "out" / "report.html") in said.out.replace("\n", "")
    assert (tmp_path / "out" / "comparison.csv").is_file()
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main([str(runs_folder), "--annotation", "not-there", "--annotations-dir", str(tmp_path)]) == 1
    assert "not-there" in capsys.readouterr().err


@pytest.fixture
def few_rows(shipped_rows: list[AnnotatedResponse], monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped annotation is its first 20 rows."""
    monkeypatch.setattr(AnnotationStore, "rows", lambda self: shipped_rows[:20])


@pytest.mark.usefixtures("undrawn")
def test_a_report_on_an_annotation_alone(tmp_path: Path) -> None:
    assert main(["--annotation", "tiny_arith", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"critical_tokens.{kind}" for kind in ("png", "pdf", "csv")),
        "report.html",
    }
    kinds = {r["bin"]: r for r in read_csv(tmp_path / "critical_tokens.csv") if r["by"] == "kind"}
    assert sum(int(r["tokens"]) for r in kinds.values()) == 76_223
    assert f"{float(kinds['operator']['fraction']):.0%}" == "81%"
    assert kinds["line break"]["fraction"] == ""  # none occurs


def test_nothing_to_report_on_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "--annotation NAME" in capsys.readouterr().err


def test_the_page_shows_text_as_text_and_needs_no_network(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    table = PageTable(pd.DataFrame({HOSTILE: [HOSTILE]}), HOSTILE, [HOSTILE])
    section = Section(HOSTILE, HOSTILE, [table], [], table)
    write_page(path, title=HOSTILE, lead=HOSTILE, sections=[section], explorer=None, facts={HOSTILE: HOSTILE})
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "iframe", "object", "link", "b", "form"}
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on") or a in ("href", "style")]
    # Title twice, lead, heading and lead of the section, the table and the folded one with its heading, two facts.
    assert page.text.count("<script>alert(1)</script>") == 2 + 1 + 2 + 3 + 4 + 2
    assert "{{ 7*7 }}" in page.text
    assert not re.search(r"[\0-\x09\x0b-\x1f\x7f\u202e]", html)
    assert "http:" not in html
    assert "https:" not in html


def test_the_pages_policy_allows_its_own_style_alone(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(path, title="t", lead="", sections=[], explorer=None, facts={})
    html = path.read_text(encoding="utf-8")
    policy = next(a["content"] for tag, a in Page(html).tags if a.get("http-equiv") == "Content-Security-Policy")
    style = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "script-src" not in policy  # default-src 'none' stands


def test_the_page_and_the_terminal_have_one_legend(tmp_path: Path) -> None:
    write_page(tmp_path / "r.html", title="", lead="", sections=[], explorer=Explorer("{}"), facts={})
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    for level, meaning in LEVELS.items():
        assert f'<span class="{level}">{level}: {meaning}</span>' in html
        assert meaning in legend().plain


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn", "few_rows")
def test_a_report_leaves_no_file_of_an_earlier_one(tmp_path: Path) -> None:
    """Reports on one comparison and on two, either after the other, are as if written into an empty folder."""
    for name, benchmarks in (("one", ("x",)), ("two", ("x", "y"))):
        for i, benchmark in enumerate(benchmarks):
            for j, mask in enumerate(("all", "critical")):
                more = {"benchmark": benchmark, "per_problem": {"id": ["a", "b"], "correct": [j, 1]}}
                write_run(tmp_path / name, f"{i}{mask}", arm(mask), seed=0, correct=[j, 1], **more)
    reports = {name: [str(tmp_path / name)] for name in ("one", "two")} | {"tokens": ["--annotation", "tiny_arith"]}
    alone = {}
    for name, arguments in reports.items():
        assert main([*arguments, "--out", str(tmp_path / "fresh" / name)]) == 0
        alone[name] = {path.name for path in (tmp_path / "fresh" / name).iterdir()}
        assert {name for name in alone[name] if not written_by_a_report(name)} == {PAGE}
    assert len({*map(frozenset, alone.values())}) == 3
    again = tmp_path / "again"
    own = {"notes.md", "curves.txt", "comparison-1.csv", "results.json", "job0"}
    (again / "job0").mkdir(parents=True)
    for name in own - {"job0"}:
        (again / name).write_text("kept")
    for name in ("one", "two", "tokens", "one"):
        assert main([*reports[name], "--out", str(again)]) == 0
        assert {path.name for path in again.iterdir()} == alone[name] | own


@pytest.mark.usefixtures("undrawn", "few_rows")
def test_files_of_a_reports_names_stay_where_there_was_no_report(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.csv").write_text("of something else")
    assert main(["--annotation", "tiny_arith", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "comparison.csv").read_text() == "of something else"
