"""Everything a report consists of, into one folder: comparison.csv, arms.csv, PNG figures, report.html."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cft.files import write_atomically
from cft.report.compare import Comparison
from cft.report.figure import accuracy_figure, critical_figure
from cft.report.kinds import count_kinds
from cft.report.page import PageFigure, write_page
from cft.report.spreadsheet import write_arms, write_runs
from cft.report.text import one_line
from cft.report.transcript import Decode, transcript
from cft.types import AnnotatedResponse


@dataclass(frozen=True, slots=True)
class Evidence:
    """Annotated rows, for transcripts and the figure of critical tokens. decode: ids -> text, special tokens shown."""

    rows: Sequence[AnnotatedResponse]
    mask: Callable[[AnnotatedResponse], NDArray[np.float32]]
    decode: Decode
    transcripts: int


def build_report(
    out: Path,
    *,
    comparisons: Sequence[Comparison],
    evidence: Evidence | None,
    title: str,
    lead: str,
    facts: Mapping[str, str],
) -> Path:
    """Write the report into `out`; returns the page's path. evidence: None for a report without transcripts."""
    figures = []
    for i, comparison in enumerate(comparisons):
        png = accuracy_figure(comparison)
        _write_bytes(out / ("comparison.png" if len(comparisons) == 1 else f"comparison-{i + 1}.png"), png)
        caption = f"Arms on {comparison.benchmark}, {comparison.split} split"
        figures.append(PageFigure(one_line(caption, limit=120), png))
    transcripts = []
    if evidence is not None and evidence.rows:
        png = critical_figure(count_kinds(evidence.rows, mask=evidence.mask))
        _write_bytes(out / "critical_tokens.png", png)
        figures.append(PageFigure(f"Critical tokens by kind, {len(evidence.rows)} annotated responses", png))
        chosen = evidence.rows[: evidence.transcripts]
        transcripts = [transcript(row, evidence.mask(row), decode=evidence.decode) for row in chosen]
    write_runs(out / "comparison.csv", comparisons)
    write_arms(out / "arms.csv", comparisons)
    page = out / "report.html"
    write_page(
        page, title=title, lead=lead, comparisons=comparisons, figures=figures, transcripts=transcripts, facts=facts
    )
    return page


def _write_bytes(path: Path, data: bytes) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(path, write)
