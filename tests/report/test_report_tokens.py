"""What a report says of an annotation's tokens: places, levels, evidence that is short, digests, files of earlier reports."""

from __future__ import annotations

import csv
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.cli.report import run as main
from cft.masks.base import Critical
from cft.report import profile
from cft.report.build import PAGE, written_by_a_report
from cft.report.page import Explorer, write_page
from cft.report.transcript import MEANINGS, legend, levels
from cft.types import AnnotatedResponse, Outcome
from tests.fakes import row
from tests.report.test_report import arm, write_run


def test_a_place_in_the_response_is_exact_at_the_edges_and_the_filter_of_the_page_agrees() -> None:
    rows = [row(list(range(1, n + 1)), outcomes=[[t % 2, 0] for t in range(n)], number=n) for n in range(1, 61)]
    places = [(n, t, t % 2 == 0) for n in range(1, 61) for t in range(n)]
    found = profile.profile(rows, mask=Critical()).of("position")
    assert [b.label for b in found] == [f"{10 * at}%-{10 * (at + 1)}%" for at in range(10)]
    for at, one in enumerate(found):
        exact = [critical for n, t, critical in places if Fraction(at, 10) <= Fraction(t, n) < Fraction(at + 1, 10)]
        filtered = [c for n, t, c in places if 100 * t >= 10 * at * n and 100 * t < 10 * (at + 1) * n]  # page.js
        assert exact == filtered
        assert (one.tokens, one.critical) == (len(exact), sum(exact))


def test_the_sixth_and_seventh_tenth_of_the_shipped_annotation() -> None:
    found = profile.profile(AnnotationStore(SHIPPED / "tiny_arith").rows(), mask=Critical()).of("position")
    assert [(one.critical, one.tokens) for one in found[5:7]] == [(2_550, 7_895), (2_976, 7_693)]


# ---- levels and their legend


SETTLED = [
    (first, second)
    for first, second in product(Outcome, Outcome)
    if first == Outcome.RIGHT or Outcome.UNTRIED not in (first, second) or Outcome.UNDECIDED in (first, second)
]


@pytest.mark.parametrize("pair", SETTLED)
def test_the_legend_is_true_of_every_pair_of_outcomes(pair: tuple[Outcome, Outcome]) -> None:
    one = row([1], outcomes=[pair])
    (level,) = levels(one, Critical()(one))
    failed = [outcome in (Outcome.WRONG, Outcome.CUT_OFF) for outcome in pair]
    assert (level == "critical") == all(failed), MEANINGS["critical"]
    assert (level == "wavering") == (failed[0] and not all(failed)), MEANINGS["wavering"]
    assert "right" not in MEANINGS["wavering"]  # the other may be undecided
    assert "cut off" in MEANINGS["critical"]


def test_the_page_and_the_terminal_have_one_legend(tmp_path: Path) -> None:
    write_page(tmp_path / "r.html", title="", lead="", sections=[], explorer=Explorer("{}"), facts={})
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    for level, meaning in MEANINGS.items():
        assert f'<span class="{level}">{level}: {meaning}</span>' in html
        assert meaning in legend().plain


# ---- an annotation that holds less than two alternatives


def with_alternatives(count: int) -> list[AnnotatedResponse]:
    """The first shipped rows with so many alternatives a position."""
    return [
        replace(
            one,
            **{name: getattr(one, name)[:, :count] for name in ("alt_ids", "alt_logprob", "alt_tokens", "alt_outcome")},
            alt_answer=[position[:count] for position in one.alt_answer],
        )
        for one in AnnotationStore(SHIPPED / "tiny_arith").rows()[:20]
    ]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run that says it was trained on the shipped annotation."""
    fingerprint = AnnotationStore(SHIPPED / "tiny_arith").manifest()["fingerprint_sha256"]
    data = {"annotation": "tiny_arith", "fingerprint": fingerprint}
    write_run(tmp_path / "runs", "a", arm("critical"), seed=0, correct=[1, 0], data=data)
    return tmp_path / "runs"


def test_the_explorer_shows_the_one_alternative_there_is(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = with_alternatives(1)
    monkeypatch.setattr(AnnotationStore, "rows", lambda self: rows)
    assert main([str(trained), "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "critical_tokens.csv").open(newline="") as handle:
        kinds = [line for line in csv.DictReader(handle) if line["by"] == "kind"]
    failed = sum(int(((one.alt_outcome == 0) | (one.alt_outcome == Outcome.CUT_OFF)).sum()) for one in rows)
    assert sum(int(line["critical"]) for line in kinds) == failed
    assert sum(int(line["tokens"]) for line in kinds) == sum(len(one.response_ids) for one in rows)
    assert 'id="explorer"' in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("held, asked", [(0, ()), (1, ("--num-alternatives", "2"))])
def test_too_little_evidence_leaves_the_explorer_out_and_is_an_error_where_it_was_asked_for(
    held: int,
    asked: tuple[str, ...],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = with_alternatives(held)
    monkeypatch.setattr(AnnotationStore, "rows", lambda self: rows)
    assert main([str(trained), *asked, "--out", str(tmp_path / "out")]) == 0
    assert f"No token explorer: response {rows[0].response_id}" in capsys.readouterr().err
    assert 'id="explorer"' not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert main(["--annotation", "tiny_arith", *asked, "--out", str(tmp_path / "other")]) == 1
    assert f"the annotation holds {held}" in capsys.readouterr().err


def test_no_alternative_at_all_cannot_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--annotation", "tiny_arith", "--num-alternatives", "0"])
    assert "whole number from 1 up" in capsys.readouterr().err


# ---- a folder that holds an earlier report


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


def test_files_of_a_reports_names_stay_where_there_was_no_report(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.csv").write_text("of something else")
    assert main(["--annotation", "tiny_arith", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "comparison.csv").read_text() == "of something else"
