"""The comparison of a multirun's jobs, made when the last one has ended (`cft/cli/multirun.py`)."""

from __future__ import annotations

from pathlib import Path

from cft.errors import UserError
from cft.report.build import build_report
from cft.report.compare import compare
from cft.report.read import collect
from cft.report.tables import print_tables
from cft.report.text import printable


def compare_jobs(folder: Path) -> None:
    """Prints the table and writes comparison.csv, figures and report.html into the multirun's folder."""
    try:
        comparisons = compare(collect([folder]))
    except UserError as error:
        print(printable(f"No comparison: {error}"))
        return
    print_tables(comparisons)
    page = build_report(folder, comparisons=comparisons, evidence=None, title=folder.name)
    print(f"Comparison of {sum(len(c.runs) for c in comparisons)} runs: {page}")
