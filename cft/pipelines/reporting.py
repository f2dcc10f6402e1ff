"""The last step of a pipeline: a report on all its training runs and evaluations (`cft report` of their folders)."""

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
RESPONSES = 2000  # maximal number of responses in the token explorer


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings:
    """Keys of a `report` step.

    Args:
        title: Title of the page; "" = name of the pipeline's folder.
        choose: Compare each arm at its best value of this key on validation problems, such as optimizer.lr; "" = all values.
        annotation: Name or folder of the annotation for the token explorer; "" = the one the runs trained on.
        strict: Whether to refuse arms that differ in budget, normalizer or data; otherwise they are marked.
        folders: Run folders; default: those of the earlier training and evaluation steps.
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
    """Print the tables and write the report; None if no run has results to compare."""
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
        console.print("No report: no step of this pipeline has results to compare")
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
