"""One self-contained HTML page: tables, figures, the token explorer, facts. Safe against model text.

The template engine escapes everything, and data reaches the script as JSON that cannot end its element. A content security
policy allows only the page's own style and script (by their hashes) and embedded images: no network and no other script,
even if the escaping had a hole.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pandas as pd

from cft.files import write_bytes
from cft.report.figures import DPI
from cft.report.text import one_line, printable
from cft.report.tokens import meanings

ASSETS = Path(__file__).parent.parent / "assets" / "page"
CSS_DPI = 96


@dataclass(frozen=True, slots=True)
class PageFigure:
    """png: the image's bytes."""

    caption: str
    png: bytes


@dataclass(frozen=True, slots=True)
class PageTable:
    """cells: plain text. left: columns are words, not numbers."""

    cells: pd.DataFrame
    heading: str = ""
    notes: Sequence[str] = ()
    left: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """folded: a long table that opens on demand."""

    heading: str
    lead: str = ""
    tables: Sequence[PageTable] = ()
    figures: Sequence[PageFigure] = ()
    folded: PageTable | None = None


@dataclass(frozen=True, slots=True)
class Explorer:
    """data: of `cft.report.explorer.explorer_json`. note: a sentence, "" for none. word: what the picked tokens are called."""

    data: str
    figures: Sequence[PageFigure] = field(default_factory=tuple)
    note: str = ""
    word: str = "critical"


def write_page(
    path: Path,
    *,
    title: str,
    lead: str,
    sections: Sequence[Section],
    explorer: Explorer | None,
    facts: Mapping[str, str],
) -> None:
    """Write the page. lead: a sentence below the title, "" for none. facts: what a reader needs to repeat it."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    style, script = _asset("page.css"), _asset("page.js")
    page = environment.from_string(_asset("page.html")).render(
        title=one_line(title, limit=200),
        lead=printable(lead),
        style=style,
        script=script,
        policy=_policy(style, script if explorer else ""),
        sections=[_shown(section) for section in sections],
        legend=meanings(explorer.word) if explorer else {},
        explorer=explorer.data if explorer else "",
        explorer_note=explorer.note if explorer else "",
        explorer_word=explorer.word if explorer else "",
        explorer_figures=[_embedded(figure) for figure in explorer.figures] if explorer else [],
        facts={printable(name): printable(value) for name, value in facts.items()},
    )
    write_bytes(path, page.encode())


def _policy(style: str, script: str) -> str:
    scripts = f"; script-src '{_hash(script)}'" if script else ""
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'{scripts}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _shown(section: Section) -> dict[str, object]:
    return {
        "heading": one_line(section.heading, limit=200),
        "lead": printable(section.lead),
        "tables": [_printable(table) for table in section.tables],
        "figures": [_embedded(figure) for figure in section.figures],
        "folded": _printable(section.folded) if section.folded else None,
    }


def _printable(table: PageTable) -> dict[str, object]:
    return {
        "heading": one_line(table.heading, limit=200),
        "titles": [one_line(str(name), limit=120) for name in table.cells],
        "rows": [[one_line(value, limit=300) for value in row] for row in table.cells.to_numpy().tolist()],
        "notes": [printable(note) for note in table.notes],
        "left": table.left,
    }


def _embedded(figure: PageFigure) -> dict[str, str | int]:
    """The image at the size it was drawn for: its pixels' width is in bytes 16-19 of a PNG."""
    width = int.from_bytes(figure.png[16:20]) * CSS_DPI // DPI
    return {"caption": figure.caption, "width": width, "data": base64.b64encode(figure.png).decode()}
