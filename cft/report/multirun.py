"""The comparison of a multirun's jobs, made when the last one has ended (`cft/cli/multirun.py`)."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from cft.report.compare import ReportError, collect, compare
from cft.report.table import comparison_table
from cft.report.text import printable


def compare_jobs(folder: Path) -> None:
    """Prints the table and writes comparison.csv, figures and report.html into the multirun's folder."""
    console = Console(soft_wrap=False)
    try:
        comparisons = compare(collect([folder]))
    except ReportError as error:
        console.print(printable(f"No comparison: {error}"), markup=False)
        return
    for comparison in comparisons:
        console.print(comparison_table(comparison, width=console.width))
        for note in comparison.notes:
            console.print(printable(note), style="dim", markup=False)
    from cft.report.build import build_report  # matplotlib follows: only now, not at the start of every job
    from cft.report.evidence import facts_of

    page = build_report(
        folder, comparisons=comparisons, evidence=None, title=folder.name, lead="", facts=facts_of(comparisons)
    )
    console.print(f"Comparison of {sum(len(c.runs) for c in comparisons)} runs: {page}", markup=False)
