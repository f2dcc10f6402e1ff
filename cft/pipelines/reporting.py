"""The step that ends a pipeline: one report on all that its trainings and evaluations left (`cft report` of their folders)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from cft.config.check import ErrorDetail, suggestion
from cft.console import console
from cft.pipelines.entries import Entry
from cft.ranges import mismatch

REPORT = "report"
RESPONSES = 2000  # that the token explorer holds


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings:
    """Keys of a step of the stage `report`.

    Args:
        title: Of the page, "" for the pipeline's folder.
        choose: Compare each arm at its best value of this key on validation problems, such as optimizer.lr; "" = as they are.
        annotation: Name or folder for the token explorer, "" for what the runs trained on.
        strict: Refuse arms that differ in budget, normalizer or data; else mark them.
        folders: Of runs; those of the earlier trainings and evaluations where nothing is given.
    """

    title: str = ""
    choose: str = ""
    annotation: str = ""
    strict: bool = False
    folders: list[str]


def report_errors(own: Sequence[Entry]) -> Iterator[ErrorDetail]:
    types = get_type_hints(ReportSettings)
    for entry in own:
        if entry.key not in types:
            near = suggestion(entry.key, types) or f"; it has {', '.join(types)}"
            yield ErrorDetail(entry.key, f"a report has no such key{near}")
        elif (text := mismatch(entry.value, types[entry.key])) is not None:
            yield ErrorDetail(entry.key, text)


def make_report(config: Mapping[str, Any], *, folder: Path, annotations_dir: Path) -> Path | None:
    """Prints the table and writes the page and the files beside it; None where no run has results that can be compared."""
    from cft.report.build import build_report
    from cft.report.choice import choose
    from cft.report.compare import compare
    from cft.report.continual import print_measures, sequences
    from cft.report.read import Runs, collect
    from cft.report.tables import print_tables
    from cft.report.tokens import token_evidence

    settings = ReportSettings(
        **{entry.name: config[entry.name] for entry in fields(ReportSettings) if entry.name in config}
    )
    folders = [Path(each) for each in settings.folders if Path(each).is_dir()]
    if not any(path for each in folders for path in each.rglob("results.json")):
        console.print("No report: no step of this pipeline has results that a report compares")
        return None
    runs, choices = collect(folders), []
    if settings.choose:
        runs, choices = choose(runs, key=settings.choose)
    measured = {run.measured_on for run in runs if run.metrics}
    shown = Runs([run for run in runs if run.measured_on in measured], notes=runs.notes)
    if not shown:
        console.print("No report: no step of this pipeline was tested on problems")
        return None
    comparisons = compare(shown, strict=settings.strict)
    evidence = token_evidence(
        comparisons,
        annotation=settings.annotation,
        annotations_dir=str(annotations_dir),
        tokenizer=None,
        num_alternatives=None,
        responses=RESPONSES,
    )
    print_tables(comparisons)
    continual = sequences([folder.parent])
    print_measures(continual)
    title = settings.title or folder.parent.name
    page = build_report(
        folder, comparisons=comparisons, evidence=evidence, title=title, choices=choices, continual=continual
    )
    console.print(f"Report: {page}")
    return page
