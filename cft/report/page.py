"""One HTML page that needs nothing else: tables, figures, transcripts, facts. Safe against model text.

Everything is escaped by the template engine, there is no script, and a content security policy allows this page's own
style (by its hash) and embedded images alone: no network, no script even if a hole were found.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from cft.files import write_atomically
from cft.report.compare import ACCURACY, Comparison
from cft.report.figure import DPI
from cft.report.table import MISSING, cells, heading, shown
from cft.report.template import STYLE, TEMPLATE
from cft.report.text import one_line, printable
from cft.report.transcript import Transcript

CSS_DPI = 96
SEEDS_ONLY = "* interval over seeds alone: the values of single problems are not recorded."


@dataclass(frozen=True, slots=True)
class PageFigure:
    """png: the image's bytes."""

    caption: str
    png: bytes


@dataclass(frozen=True, slots=True)
class _Table:
    heading: str
    titles: list[str]
    rows: list[list[str]]
    notes: list[str]


def write_page(
    path: Path,
    *,
    title: str,
    lead: str,
    comparisons: Sequence[Comparison],
    figures: Sequence[PageFigure],
    transcripts: Sequence[Transcript],
    facts: Mapping[str, str],
) -> None:
    """Write the page. lead: a sentence below the title, "" for none. facts: what a reader needs to repeat it."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    page = environment.from_string(TEMPLATE).render(
        title=one_line(title, limit=200),
        lead=printable(lead),
        style=STYLE,
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        tables=[_arms(comparison) for comparison in comparisons],
        figures=[_embedded(figure) for figure in figures],
        transcripts=transcripts,
        runs=_runs(comparisons),
        facts={printable(name): printable(value) for name, value in facts.items()},
    )
    write_atomically(path, lambda temporary: _write(temporary, page))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _embedded(figure: PageFigure) -> dict[str, str | int]:
    """The image at the size it was drawn for: its pixels' width stands in bytes 16-19 of a PNG."""
    width = int.from_bytes(figure.png[16:20]) * CSS_DPI // DPI
    return {"caption": figure.caption, "width": width, "data": base64.b64encode(figure.png).decode()}


def _arms(comparison: Comparison) -> _Table:
    titles, rows = cells(comparison)
    notes = list(comparison.notes)
    if any(value.endswith("]*") for row in rows for value in row):
        notes.append(SEEDS_ONLY)
    return _Table(heading(comparison), titles, rows, [printable(note) for note in notes])


def _runs(comparisons: Sequence[Comparison]) -> _Table:
    titles = ["arm", "seed", "benchmark", "accuracy", "best epoch", "training, s", "folder"]
    rows = []
    for comparison in comparisons:
        for arm in comparison.arms:
            for run in arm.runs:
                accuracy = shown(run.metrics[ACCURACY]) if ACCURACY in run.metrics else MISSING
                best, seconds = run.facts.get("best_epoch"), run.facts.get("train_seconds")
                row = [arm.label, str(run.seed), comparison.benchmark, accuracy]
                row += [MISSING if best is None else str(best + 1), MISSING if seconds is None else f"{seconds:.0f}"]
                rows.append([one_line(value, limit=80) for value in [*row, run.folder.name]])
    return _Table("", titles, rows, [])
