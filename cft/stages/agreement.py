"""The agreement stage: compares two annotations of the same problems; writes agreement.json and the card of the first."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from cft import run_log
from cft.annotation.store import AnnotationStore, find_annotation
from cft.config.schema import AgreementConfig
from cft.console import console
from cft.runs.agreement import compare, engine_of, write_agreement
from cft.runs.annotation_card import write_annotation_card
from cft.runs.job import Job


def agreement(cfg: AgreementConfig, job: Job) -> Path:
    """Compare two annotations; returns the file written, in the folder of the first annotation."""
    one, other = (
        AnnotationStore(find_annotation(name, annotations_dir=cfg.annotations_dir, key=key))
        for name, key in ((cfg.annotation, "annotation"), (cfg.other, "other"))
    )
    found = compare(one, other)
    run_log.write_to(job.folder)
    path = write_agreement(one, other, found)
    write_annotation_card(one)
    title = f"{cfg.annotation} ({engine_of(one.manifest())}) and {cfg.other} ({engine_of(other.manifest())})"
    table = Table(title=title, show_header=False, title_justify="left")
    for name, fraction in (
        ("same responses", found.responses),
        ("same verdicts on them", found.verdicts),
        ("same alternatives", found.alternatives),
        ("same outcomes", found.outcomes),
        ("same critical tokens", found.critical),
    ):
        table.add_row(name, str(fraction))
    console.print(table)
    console.print(
        f"Alternatives, outcomes and critical tokens are compared on identical responses only -> {path}", markup=False
    )
    return path
