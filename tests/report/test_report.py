"""The report: arms and their intervals, refusals, safe CSV, HTML and terminal output, figures that hold the data."""

from __future__ import annotations

import csv
import io
import json
import re
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from cft.annotation.kinds import KindCount, count_kinds, kind_of
from cft.cli.report import run as main
from cft.evaluation.intervals import bootstrap_interval, paired_two_way_bootstrap, two_way_bootstrap
from cft.evaluation.paired_tests import holm, paired_difference
from cft.report.arms import BASE, Comparison, ReportError
from cft.report.build import Evidence, build_report
from cft.report.compare import collect, compare
from cft.report.drawing import pdf_of, png_of
from cft.report.figure import accuracy_figure, forest_figure
from cft.report.page import PageTable, Section, write_page
from cft.report.profile_figure import critical_figure
from cft.report.spreadsheet import cell, write_arms, write_runs
from cft.report.table import cells, comparison_table, latex, markdown
from cft.report.text import one_line, printable
from cft.report.transcript import levels, terminal
from cft.types import AnnotatedResponse, Outcome

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\x07\u202e{{ 7*7 }}"
WORDS = ["<eos>", "2", " +", "3", " =", "5", "\n", "\x1b[2J", "<b>"]


def write_run(root: Path, name: str, arm: dict[str, Any], *, seed: int, correct: list[int], **more: Any) -> Path:
    """A results.json as train.py writes it; `budget` and `data` are the same for all trained arms unless given."""
    folder = root / name
    folder.mkdir(parents=True)
    ids = more.pop("ids", [f"p{i}" for i in range(len(correct))])
    results: dict[str, Any] = {
        "schema": 1,
        "stage": "train",
        "run": name,
        "arm": arm,
        "seed": seed,
        "benchmark": "arithmetic",
        "split": "test",
        "problems": len(correct),
        "metrics": {
            "eval/accuracy": bootstrap_interval(correct).as_dict(),
            "eval/entropy": {"value": 0.1 * (seed + 1), "low": 0.0, "high": 1.0},
            "eval/distinct_2": {"value": None, "low": None, "high": None},
        },
        "per_problem": {"id": ids, "correct": correct},
        "eligible_fraction": 0.25,
        "train_seconds": 3.0,
        "best_epoch": 1,
        "base": None,
    }
    if "mask" in arm:
        results["budget"] = {"epochs": 2, "steps": 10, "rows_per_step": 16}
        results["data"] = {"fingerprint": "f", "rows_sha256": "r"}
    (folder / "results.json").write_text(json.dumps(results | more), encoding="utf-8")
    return folder


def arm(mask: str, weighting: str = "uniform", **more: Any) -> dict[str, Any]:
    method = {"mask": mask, "weighting": weighting, "loss": "nll", "reference": "none", "groups": "none"}
    return {"model": "tiny", **method, "loss.normalizer": "critical", **more}


TARGETS = {"all": "cft.masks.All", "critical": "cft.masks.Critical"}


def draws(seed: int, share: float, size: int = 40) -> list[int]:
    return (np.random.default_rng(seed).random(size) < share).astype(int).tolist()


@pytest.fixture
def runs_folder(tmp_path: Path) -> Path:
    root = tmp_path / "runs with = and spaces"
    for seed in (0, 1, 2):
        for i, mask in enumerate(("all", "critical", "random_like_critical")):
            write_run(root, f"{mask}{seed}", arm(mask), seed=seed, correct=draws(10 * i + seed, 0.4 + 0.2 * i))
    write_run(root, "base", {"model": "tiny"}, seed=0, correct=draws(99, 0.3), stage="evaluate")
    return root


@pytest.fixture
def comparison(runs_folder: Path) -> Comparison:
    (found,) = compare(collect([runs_folder]))
    return found


def row_of(
    response_ids: list[int], *, response: str, spans: list[list[int]], outcomes: list[list[int]]
) -> AnnotatedResponse:
    size, k = len(response_ids), len(outcomes[0])
    return AnnotatedResponse(
        problem_id="p",
        response_id="r",
        problem=HOSTILE,
        answer="5",
        response=response,
        finish="stop",
        prompt_ids=np.zeros(1, np.int32),
        response_ids=np.array(response_ids, np.int32),
        char_span=np.array(spans, np.int32),
        logprob=np.log(np.full(size, 0.75, np.float32)),
        entropy=np.full(size, 0.5, np.float32),
        alt_ids=np.full((size, k), 8, np.int32),
        alt_logprob=np.log(np.full((size, k), 0.125, np.float32)),
        alt_answer=[[HOSTILE if outcome == Outcome.WRONG else "" for outcome in row] for row in outcomes],
        alt_tokens=np.zeros((size, k), np.int32),
        alt_outcome=np.array(outcomes, np.int8),
        replay_outcome=np.full(size, -1, np.int8),
    )


@pytest.fixture
def row() -> AnnotatedResponse:
    response = "2 +3\n\x1b[2J<b>"
    spans = [[0, 1], [1, 3], [3, 4], [4, 5], [5, 9], [9, 12], [12, 12]]
    outcomes = [[0, 0], [0, 1], [1, -1], [-2, 0], [-3, 0], [1, -1], [1, -1]]
    return row_of([1, 2, 3, 6, 7, 8, 0], response=response, spans=spans, outcomes=outcomes)


MASK = np.array([1, 0, 0, 1, 0, 0, 0], np.float32)
decode: Callable[[Any], str] = lambda ids: "".join(WORDS[i] for i in ids)  # noqa: E731


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


# ---- comparison


def test_runs_that_differ_in_their_seed_make_one_arm_and_intervals_are_two_way(comparison: Comparison) -> None:
    assert [(a.label, len(a.runs)) for a in comparison.arms] == [(BASE, 1), ("SFT", 3), ("CFT", 3), ("random mask", 3)]
    assert comparison.problems == 40
    table = [draws(10 + seed, 0.6) for seed in (0, 1, 2)]
    cft, sft = comparison.arms[2], comparison.arms[1]
    assert cft.metrics["eval/accuracy"].interval == two_way_bootstrap(table, within=(0, 1))
    assert cft.metrics["eval/accuracy"].scope == "seeds and problems"
    assert cft.reference == "SFT"
    theirs = [draws(seed, 0.4) for seed in (0, 1, 2)]
    assert cft.difference == paired_two_way_bootstrap(table, theirs, resamples=10_000)
    tested = paired_difference(table, theirs, pair_seeds=True)
    contrasts = [a.contrasts["eval/accuracy"] for a in comparison.arms if a.contrasts]
    assert contrasts[1].p == tested.p
    assert [c.holm for c in contrasts] == holm([c.p for c in contrasts])
    assert sft.difference is None
    assert comparison.arms[0].metrics["eval/accuracy"].interval == bootstrap_interval(draws(99, 0.3))


def test_metrics_without_values_of_single_problems_are_resampled_over_seeds_and_marked(comparison: Comparison) -> None:
    entropy = comparison.arms[2].metrics["eval/entropy"]
    assert entropy.scope == "seeds"
    half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem([0.1, 0.2, 0.3])  # Student's interval of three values
    assert entropy.interval.value == pytest.approx(0.2)
    assert entropy.interval.high - 0.2 == pytest.approx(half, rel=0.15)
    titles, rows = cells(comparison)
    assert rows[2][titles.index("entropy (nats)")].endswith("]*")
    assert "distinct-2" not in titles  # null everywhere: not defined


def test_twelve_runs_are_twelve_rows_of_one_comparison(tmp_path: Path) -> None:
    jobs = [
        (m, w, s)
        for m in ("all", "critical", "random_like_critical")
        for w in ("uniform", "probability")
        for s in (0, 1)
    ]
    for i, (mask, weighting, seed) in enumerate(jobs):
        write_run(tmp_path, str(i), arm(mask, weighting), seed=seed, correct=draws(i, 0.5))
    comparisons = compare(collect([tmp_path]))
    assert len(comparisons) == 1
    assert [a.label for a in comparisons[0].arms] == [
        "SFT",
        "CFT",
        "random mask",
        "DFT",
        "CFT + DFT",
        "random mask + DFT",
    ]
    write_runs(tmp_path / "comparison.csv", comparisons)
    with (tmp_path / "comparison.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert sorted((r["mask"], r["weighting"], int(r["seed"])) for r in rows) == sorted(jobs)
    for record in rows:
        i = jobs.index((record["mask"], record["weighting"], int(record["seed"])))
        assert float(record["eval/accuracy"]) == pytest.approx(np.mean(draws(i, 0.5)))


def test_arms_on_different_problems_are_refused_by_name(runs_folder: Path) -> None:
    write_run(runs_folder, "other", arm("numeric"), seed=0, correct=[1] * 40, ids=[f"q{i}" for i in range(40)])
    with pytest.raises(ReportError, match="different problems: 40 and 40, 0 in common") as error:
        compare(collect([runs_folder]))
    assert "'numeric'" in str(error.value)


def test_problems_of_the_same_ids_and_other_content_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0], problems_sha256="a" * 64)
    write_run(tmp_path, "b", arm("critical"), seed=0, correct=[1, 0], problems_sha256="b" * 64)
    with pytest.raises(ReportError, match=r"'SFT'.*'CFT'.*sha256 aaaaaaaaaaaa and bbbbbbbbbbbb"):
        compare(collect([tmp_path]))


def test_arms_measured_in_different_ways_are_refused_by_name_and_value(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0], evaluation={"temperature": 1.0, "seed": 0})
    write_run(tmp_path, "b", arm("critical"), seed=0, correct=[1, 0], evaluation={"temperature": 0.7, "seed": 1})
    with pytest.raises(ReportError, match=r"'SFT'.*'CFT'.*temperature: 1.0 and 0.7"):
        compare(collect([tmp_path]))


def test_benchmarks_are_compared_apart(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0])
    write_run(tmp_path, "b", arm("all"), seed=0, correct=[1, 0, 1], benchmark="gsm8k")
    assert [(c.benchmark, c.problems) for c in compare(collect([tmp_path]))] == [("arithmetic", 2), ("gsm8k", 3)]


def test_a_repeated_seed_counts_once_the_newer_one(tmp_path: Path) -> None:
    import os

    old = write_run(tmp_path, "z_old", arm("all"), seed=0, correct=[0, 0])
    new = write_run(tmp_path, "a_new", arm("all"), seed=0, correct=[1, 1])
    os.utime(old / "results.json", (1, 1))
    os.utime(new / "results.json", (2, 2))
    (comparison,) = compare(collect([tmp_path, new]))  # a folder given twice is no repetition
    assert [run.folder.name for run in comparison.runs] == ["a_new"]
    assert any("1 run of an arm and seed that a newer one has is left out" in note for note in comparison.notes)


def test_an_evaluated_checkpoint_joins_the_arm_it_came_from(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("critical"), seed=0, correct=[1, 0])
    merged = {**arm("critical"), "limit": "2", "benchmark": "arithmetic", "verify.workers": "1"}
    write_run(tmp_path, "b", merged, seed=1, correct=[1, 1], stage="evaluate")
    (comparison,) = compare(collect([tmp_path]))
    assert [(a.label, len(a.runs)) for a in comparison.arms] == [("CFT", 2)]


def test_labels_tell_arms_apart_by_what_differs(tmp_path: Path) -> None:
    for i, rate in enumerate((0.001, 0.003)):
        write_run(tmp_path, str(i), arm("critical", **{"optimizer.lr": rate}), seed=0, correct=[1, 0])
    (comparison,) = compare(collect([tmp_path]))
    assert [a.label for a in comparison.arms] == ["CFT, lr=0.001", "CFT, lr=0.003"]
    assert comparison.varying == ("optimizer.lr",)


def test_the_base_model_may_come_from_the_trained_runs(tmp_path: Path) -> None:
    base = {
        "metrics": {"eval/accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}},
        "per_problem": {"id": ["p0", "p1"], "correct": [1, 0]},
    }
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0], base=base)
    (comparison,) = compare(collect([tmp_path]))
    assert comparison.arms[0].label == BASE
    assert comparison.arms[0].metrics["eval/accuracy"].interval.high == 0.6


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON"),
        ("[]", "expected results of schema 1, found list"),
        ('{"schema": 2}', "expected results of schema 1, found 2"),
        ('{"schema": 1, "stage": "train"}', "missing run, arm, seed"),
    ],
)
def test_files_that_are_no_results_are_refused_with_their_path(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ReportError, match=message) as error:
        collect([tmp_path])
    assert str(tmp_path) in str(error.value)


def test_columns_of_unequal_length_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"no results\.json below"):
        collect([tmp_path])
    with pytest.raises(ReportError, match="no such folder"):
        collect([tmp_path / "nowhere"])
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0], ids=["p", "p"])
    with pytest.raises(ReportError, match="different ids"):
        collect([tmp_path])


def test_runs_without_an_evaluation_are_left_out_and_counted(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0])
    write_run(tmp_path, "b", arm("critical"), seed=0, correct=[1], metrics={}, per_problem={"id": [], "correct": []})
    (comparison,) = compare(collect([tmp_path]))
    assert [a.label for a in comparison.arms] == ["SFT"]
    assert any("1 run without an evaluation is left out" in note for note in comparison.notes)


# ---- what leaves


@pytest.mark.parametrize(
    "value, expected",
    [
        ("=cmd()", "'=cmd()"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+1+cmd()", "'+1+cmd()"),
        ("-2+3", "'-2+3"),
        (" \t=1", "'     =1"),
        ("-0.5", "-0.5"),
        (-0.5, -0.5),
        (3, 3),
        (None, ""),
        ("plain", "plain"),
        ("a\nb\x1b[31m", "a⏎b␛[31m"),
    ],
)
def test_cells_cannot_be_formulas_and_numbers_stay_numbers(value: Any, expected: Any) -> None:
    assert cell(value) == expected


def test_arms_csv_holds_the_difference_as_a_negative_number(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("all", note="=HYPERLINK()"), seed=0, correct=[1, 1, 1, 0])
    write_run(tmp_path, "b", arm("critical", note="=HYPERLINK()"), seed=0, correct=[0, 0, 1, 0])
    write_arms(tmp_path / "arms.csv", compare(collect([tmp_path])))
    with (tmp_path / "arms.csv").open(newline="", encoding="utf-8") as handle:
        sft, cft = list(csv.DictReader(handle))
    assert float(cft["eval/accuracy/difference"]) == -0.5
    assert cft["difference_to"] == "SFT"
    assert sft["eval/accuracy/difference"] == ""
    assert cft["note"] == "'=HYPERLINK()"


def test_printable_text_cannot_move_a_cursor_or_reorder_a_line() -> None:
    assert printable("a\x1b[2J\x07\r\n\x9bb\u202ec\ud800\t.") == "a␛[2J␇␍\n\ufffdb\ufffdc\ufffd    ."
    assert one_line("ab\ncd", limit=4) == "ab⏎…"


@pytest.mark.parametrize("width", [80, 140, 400])
def test_the_terminal_table_fits_and_shows_every_arm(comparison: Comparison, width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison_table(comparison, width=width))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    for compared in comparison.arms:
        value = compared.metrics["eval/accuracy"].interval
        assert any(
            compared.label in line and f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]" in line
            for line in lines
        )


def test_every_token_has_its_level(row: AnnotatedResponse) -> None:
    assert levels(row, MASK) == ["critical", "wavering", "plain", "critical", "plain", "plain", "plain"]
    with pytest.raises(ValueError, match="mask of 1 for 7 tokens"):
        levels(row, np.ones(1, np.float32))


def test_the_terminal_transcript_holds_no_escape_of_the_models(row: AnnotatedResponse) -> None:
    shown = terminal(row, MASK)
    assert shown.plain == "2 +3⏎\n␛[2J<b>⏹"
    styled = {shown.plain[s.start : s.end] for s in shown.spans if "red" in str(s.style)}
    assert styled == {"2", "⏎\n"}


def test_the_page_shows_text_as_text_and_needs_no_network(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    table = PageTable(HOSTILE, [HOSTILE], [[HOSTILE]], [HOSTILE])
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
    import base64
    import hashlib

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


def test_kinds_of_tokens_and_their_counts(row: AnnotatedResponse) -> None:
    texts = ["12", " +", "=", "\\frac", " apples", "times", ".", "\n", " ", "", "x2"]
    kinds = [
        "digit",
        "operator",
        "operator",
        "operator",
        "word",
        "operator",
        "punctuation",
        "line break",
        "punctuation",
        "end",
        "digit",
    ]
    assert [kind_of(text) for text in texts] == kinds
    counts = count_kinds([row, row], mask=lambda _: MASK)
    assert sum(c.tokens for c in counts) == 14
    assert {c.kind: (c.tokens, c.critical) for c in counts}["line break"] == (2, 2)
    assert {c.kind: (c.tokens, c.critical) for c in counts}["end"] == (2, 0)


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
    few, more = [png_of(critical_figure([KindCount("digit", 4, critical)])) for critical in (1, 2)]
    assert few != more


def test_a_report_holds_every_file(tmp_path: Path, comparison: Comparison, row: AnnotatedResponse) -> None:
    out = tmp_path / "out"
    evidence = Evidence([row] * 3, lambda _: MASK, decode, most=2)
    page = build_report(out, comparisons=[comparison], evidence=evidence, title="T", lead="", facts={"model": "tiny"})
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


def test_the_markdown_table_has_every_cell_of_the_page(comparison: Comparison) -> None:
    titles, rows = cells(comparison)
    lines = [line for line in markdown([comparison]).splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [table[0], *table[2:]] == [titles, *rows]
    assert {*table[1]} == {"---"}


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


def test_runs_of_which_none_was_evaluated_are_refused_with_the_way_out(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0], metrics={})
    with pytest.raises(ReportError, match=r"experiments\.learning_rates"):
        compare(collect([tmp_path]))


# ---- which runs are one arm


def test_arms_that_differ_in_a_setting_of_their_yaml_are_apart_and_labelled_by_it(tmp_path: Path) -> None:
    for i, (mask, size, rule) in enumerate([("all", 16, None), ("critical", 16, "all"), ("critical", 32, "all")]):
        settings = {"mask._target_": TARGETS[mask], "mask.rule": rule, "data.batch_size": size, "optimizer.lr": 0.1}
        write_run(tmp_path, str(i), arm(mask), seed=0, correct=[1, 0], settings=settings)
    (comparison,) = compare(collect([tmp_path]))
    assert sorted(a.label for a in comparison.arms) == [
        "CFT, batch_size=16",
        "CFT, batch_size=32",
        "SFT, batch_size=16",
    ]
    assert comparison.varying == ("mask", "data.batch_size")  # the mask explains mask._target_ and mask.rule
    assert not [note for note in comparison.notes if "left out" in note]


def test_a_rule_that_differs_under_one_mask_is_shown(tmp_path: Path) -> None:
    for i, rule in enumerate(("all", "any")):
        own = {"mask.rule": rule} if rule != "all" else {}  # an arm holds what is not the option's own
        write_run(tmp_path, str(i), arm("critical", **own), seed=0, correct=[1, 0], settings={"mask.rule": rule})
    (comparison,) = compare(collect([tmp_path]))
    assert [a.label for a in comparison.arms] == ["CFT", "critical, rule=any"]


def test_runs_without_recorded_settings_are_read_and_kept_apart_from_those_with(tmp_path: Path) -> None:
    write_run(tmp_path, "old", arm("critical"), seed=0, correct=[1, 0])
    write_run(tmp_path, "new", arm("critical"), seed=0, correct=[1, 0], settings={"data.batch_size": 16})
    (comparison,) = compare(collect([tmp_path]))
    assert sorted(a.label for a in comparison.arms) == ["CFT", "CFT, settings=not recorded"]


def test_a_checkpoint_of_unknown_training_is_not_the_base_model(tmp_path: Path) -> None:
    write_run(tmp_path, "base", {"model": "tiny"}, seed=0, correct=[0, 0], stage="evaluate")
    unknown = {"model": "run/export", "weights": "abc123"}
    write_run(tmp_path, "unknown", unknown, seed=0, correct=[1, 1], stage="evaluate")
    write_run(tmp_path, "cft", arm("critical"), seed=0, correct=[1, 0])
    (comparison,) = compare(collect([tmp_path]))
    assert {a.label: a.metrics["eval/accuracy"].interval.value for a in comparison.arms} == {
        BASE: 0.0,
        "CFT": 0.5,
        "checkpoint run/export (weights abc123)": 1.0,
    }
    assert set(comparison.varying) == {"model"}


@pytest.mark.parametrize(
    "other", [{"ids": ["q0", "q1"]}, {"evaluation": {"temperature": 0.7}}], ids=["problems", "sampling"]
)
def test_one_arm_and_seed_measured_in_two_ways_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0], evaluation={"temperature": 1.0})
    write_run(tmp_path, "b", arm("all"), seed=0, correct=[1, 1], **({"evaluation": {"temperature": 1.0}} | other))
    with pytest.raises(ReportError, match=r"different problems|temperature: 1\.0 and 0\.7"):
        compare(collect([tmp_path]))


@pytest.mark.parametrize("hashes, noted", [(("a", "a"), False), (("a", "b"), True)])
def test_runs_on_different_rows_of_an_annotation_are_noted(
    tmp_path: Path, hashes: tuple[str, str], noted: bool
) -> None:
    for i, digest in enumerate(hashes):
        data = {"fingerprint": "f", "rows_sha256": digest}
        write_run(tmp_path, str(i), arm("all"), seed=i, correct=[1, 0], data=data)
    (comparison,) = compare(collect([tmp_path]))
    assert any("different rows" in note for note in comparison.notes) is noted


def test_runs_on_other_numbers_of_problems_are_compared_on_those_they_share(tmp_path: Path) -> None:
    ids = [f"p{i}" for i in range(6)]
    write_run(tmp_path, "few", arm("all"), seed=0, correct=[1, 0, 0], ids=ids[:3])
    write_run(tmp_path, "many", arm("critical"), seed=0, correct=[0, 1, 1, 1, 1, 1], ids=[*ids[3:], *ids[:3]])
    write_run(tmp_path, "again", arm("critical"), seed=0, correct=[1], ids=ids[:1])  # fewer of an arm and seed
    (found,) = compare(collect([tmp_path]))
    assert found.problems == 3
    values = {a.label: a.metrics["eval/accuracy"].interval.value for a in found.arms}
    assert values == {"SFT": pytest.approx(1 / 3), "CFT": 1.0}
    cft = next(a for a in found.arms if a.label == "CFT")
    assert cft.difference is not None
    assert cft.difference.value == pytest.approx(2 / 3)
    assert len(cft.runs.run) == 1
    assert "eval/entropy" not in cft.metrics  # one value for all six problems
    notes = " ".join(found.notes)
    assert "on the 3 problems that all 2 runs share; they were measured on 3 or 6" in notes
    assert "measured on more problems" in notes


def test_the_stated_base_is_of_the_shared_problems(tmp_path: Path) -> None:
    ids = [f"p{i}" for i in range(4)]
    base = {
        "metrics": {"eval/accuracy": {"value": 0.5, "low": 0.0, "high": 1.0}},
        "per_problem": {"id": ids, "correct": [1, 1, 0, 0]},
    }
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0], ids=ids[:2], base=base)
    (found,) = compare(collect([tmp_path]))
    assert {a.label: a.metrics["eval/accuracy"].interval.value for a in found.arms} == {"base model": 1.0, "SFT": 0.5}


def test_a_table_says_what_it_has_no_room_for(tmp_path: Path) -> None:
    settings = {"settings": {"optimizer.lr": 1e-4}}
    for seed in (0, 1):
        write_run(tmp_path, f"a{seed}", arm("all"), seed=seed, correct=draws(seed, 0.4), **settings)
        write_run(
            tmp_path,
            f"b{seed}",
            arm("critical", "a_long_name_of_a_weighting"),
            seed=seed,
            correct=draws(9, 0.5),
            **settings,
        )
    (found,) = compare(collect([tmp_path]))
    titles, _ = cells(found)
    for width in (80, 200):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(comparison_table(found, width=width))
        text = " ".join(console.export_text().split())
        named = text.partition("No room here for ")[2].partition(": see comparison.md")[0].split(", ")
        header = text.partition("interval]")[2]
        for name in titles:
            assert (name in named) != (name.split()[0] in header.partition("No room")[0])
        if width == 200:
            assert "lr" in header.partition("No room")[0]
            assert "entropy (nats)" in header.partition("No room")[0]


def test_the_table_for_papers_is_booktabs_with_plain_text_escaped(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0])
    write_run(tmp_path, "b", arm("50%_&#"), seed=0, correct=[1, 1])
    text = latex(compare(collect([tmp_path])))
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"50\%\_\&\#", r"\begin{tabular}{lr"):
        assert part in text
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    columns = {line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")}
    assert len(columns) == 1
