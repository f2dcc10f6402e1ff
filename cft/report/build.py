"""Everything a report consists of, into one folder: report.html, each figure as PNG and PDF, each number as CSV, the tables
of the page as markdown (comparison.md) and LaTeX (comparison.tex).

comparison.csv  a row a run             curves.csv           what was logged while training
arms.csv        a row an arm            pass_at_k.csv        pass@k for every k
differences.csv a row a contrast        compute.csv          annotation beside training
config_differences.csv                  critical_tokens.csv  which tokens are critical (with an annotation)

A folder that holds a report gets this one instead: files of these names go, whatever else is there stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cft.files import write_bytes
from cft.report import compute, curves, pass_curve, profile
from cft.report.arms import ACCURACY, Comparison
from cft.report.choice import Choice
from cft.report.drawing import pdf_of, png_of
from cft.report.explorer import explorer_json
from cft.report.figure import accuracy_figure, forest_figure
from cft.report.page import Explorer, PageFigure, PageTable, Section, write_page
from cft.report.profile_figure import profile_figure
from cft.report.settings import differing
from cft.report.spreadsheet import write_arms, write_differences, write_records, write_runs
from cft.report.table import MISSING, cells, heading, latex, markdown, shown
from cft.report.text import one_line
from cft.report.training_figures import compute_figure, groups_figure, learning_figure, pass_figure
from cft.report.transcript import Decode
from cft.types import AnnotatedResponse

PAGE = "report.html"
# What a report writes beside its page; those of one comparison are numbered where there are several.
_WRITTEN = re.compile(
    r"(comparison|arms|curves|differences|config_differences|compute|critical_tokens|pass_at_k(-\d+)?)\.csv|comparison\.(md|tex)|"
    r"((comparison|differences|pass_at_k)(-\d+)?|learning_curves|critical_and_other|compute|critical_tokens)\.(png|pdf)"
)
LEARNING = (
    "Mean over seeds, each seed thin behind it. A loss is over the tokens that its arm's mask picks: arms of different masks "
    "differ in it without being better or worse"
)
SEEDS_ONLY = "* interval over seeds alone: the values of single problems are not recorded."


@dataclass(frozen=True, slots=True)
class Evidence:
    """An annotation: its rows for the token explorer, its manifest for what it cost. decode: ids -> text, special tokens
    shown. most: how many responses the explorer holds."""

    rows: Sequence[AnnotatedResponse]
    mask: Callable[[AnnotatedResponse], NDArray[np.float32]]
    decode: Decode
    manifest: Mapping[str, Any] = field(default_factory=dict)
    most: int = 2000


def build_report(
    out: Path,
    *,
    comparisons: Sequence[Comparison],
    evidence: Evidence | None,
    title: str,
    lead: str,
    facts: Mapping[str, str],
    choices: Sequence[Choice] = (),
) -> Path:
    """Write the report into `out`; returns the page's path. evidence: None for a report without the token explorer."""
    _remove_earlier(out)
    draw = _Drawer(out)
    labels = curves.labels_of(comparisons)
    sections = [_results(comparison, i, comparisons, draw, labels) for i, comparison in enumerate(comparisons)]
    if choices:
        sections.append(_chosen(choices))
    if comparisons:
        sections += [_training(comparisons, draw, labels, out), _spent(comparisons, evidence, draw, out)]
        sections += _configurations(comparisons, out)
        sections.append(_runs(comparisons))
        write_runs(out / "comparison.csv", comparisons)
        write_arms(out / "arms.csv", comparisons)
        write_differences(out / "differences.csv", comparisons)
        write_bytes(out / "comparison.md", markdown(comparisons).encode())
        write_bytes(out / "comparison.tex", latex(comparisons).encode())
    page = out / PAGE
    write_page(
        page,
        title=title,
        lead=lead,
        sections=[s for s in sections if s.tables or s.figures or s.folded],
        explorer=_explorer(evidence, draw, out) if evidence and evidence.rows else None,
        facts=facts,
    )
    return page


def _remove_earlier(out: Path) -> None:
    """Files of the report that stands in the folder. Its page goes last, when it is replaced: it says that there is one
    should this report be cut off."""
    if (out / PAGE).is_file():
        for path in [path for path in out.iterdir() if written_by_a_report(path.name) and path.is_file()]:
            path.unlink()


def written_by_a_report(name: str) -> bool:
    """Whether a report writes files of this name beside its page."""
    return _WRITTEN.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class _Drawer:
    """Files of a figure, and the figure for the page."""

    out: Path

    def __call__(self, name: str, figure: Figure | None, caption: str) -> list[PageFigure]:
        if figure is None:
            return []
        png = png_of(figure)
        write_bytes(self.out / f"{name}.png", png)
        write_bytes(self.out / f"{name}.pdf", pdf_of(figure))
        return [PageFigure(one_line(caption, limit=200), png)]


def _results(
    comparison: Comparison, number: int, comparisons: Sequence[Comparison], draw: _Drawer, labels: Sequence[str]
) -> Section:
    suffix = "" if len(comparisons) == 1 else f"-{number + 1}"
    where = one_line(f"{comparison.benchmark}, {comparison.split} split", limit=80)
    titles, rows = cells(comparison)
    notes = list(comparison.notes)
    if any(value.endswith("]*") for row in rows for value in row):
        notes.append(SEEDS_ONLY)
    passes = pass_curve.pass_curves(comparison)
    if passes:
        write_records(draw.out / f"pass_at_k{suffix}.csv", pass_curve.records(comparison, passes))
    figures = [
        *draw(f"comparison{suffix}", accuracy_figure(comparison), f"Arms on {where}"),
        *draw(
            f"differences{suffix}",
            forest_figure(comparison),
            "Differences, paired by problem; filled: p below 0.05 after Holm's correction over all contrasts of the metric",
        ),
        *draw(f"pass_at_k{suffix}", pass_figure(passes, labels=labels, where=where), f"pass@k on {where}"),
    ]
    return Section(heading(comparison), tables=[PageTable("", titles, rows, notes)], figures=figures)


def _chosen(choices: Sequence[Choice]) -> Section:
    """What was tried on validation problems, and what was taken."""
    key, metric = choices[0].key, choices[0].metric
    names = [
        name
        for name in dict.fromkeys(n for c in choices for n in c.arm)
        if len({str(c.arm.get(name)) for c in choices}) > 1
    ]
    names = names or ["mask"]
    rows = []
    for choice in choices:
        for value, scores in choice.scores.items():
            each = " ".join(f"{score:.3f}" for score in scores)
            taken = "chosen" if value == choice.chosen else ""
            rows.append(
                [*(str(choice.arm.get(n, MISSING)) for n in names), value, f"{np.mean(scores):.4f}", each, taken]
            )
    titles = [*names, key, f"{metric}, mean", "each seed", ""]
    lead = f"{key} of each arm by its mean score on validation problems; test results play no part."
    return Section(f"Choice of {key}", lead, [PageTable("", titles, rows)])


def _training(comparisons: Sequence[Comparison], draw: _Drawer, labels: Sequence[str], out: Path) -> Section:
    found = curves.curves_of(comparisons)
    if found:
        write_records(out / "curves.csv", curves.records(found))
    return Section(
        "Training",
        figures=[
            *draw("learning_curves", learning_figure(found, labels=labels), LEARNING),
            *draw(
                "critical_and_other",
                groups_figure(found, labels=labels),
                "Loss and entropy apart: points are validation rows at the end of an epoch, thin lines training batches",
            ),
        ],
    )


def _spent(comparisons: Sequence[Comparison], evidence: Evidence | None, draw: _Drawer, out: Path) -> Section:
    manifest = evidence.manifest if evidence else {}
    parts = [*compute.annotation_spent(manifest), *compute.training_spent(comparisons)]
    if not parts:
        return Section("Compute")
    write_records(out / "compute.csv", compute.records(parts))
    scale = compute.rl_steps(manifest)
    caption = "Tokens: decoded for the annotation, response tokens seen in training. Seconds: each on its own machine."
    return Section("Compute spent", figures=draw("compute", compute_figure(parts, rl_steps=scale), caption))


def _configurations(comparisons: Sequence[Comparison], out: Path) -> list[Section]:
    """Settings that are not the same in all trained arms; an arm that stands in several comparisons once."""
    arms = {arm.label: arm for c in comparisons for arm in c.arms if any("settings" in run.facts for run in arm.runs)}
    trained = {label: arm for label, arm in arms.items() if "mask" in arm.key}
    table = differing([[run.facts.get("settings") for run in arm.runs] for arm in trained.values()])
    if not table:
        return []
    records = [{"setting": name, **dict(zip(trained, values, strict=True))} for name, values in table.items()]
    write_records(out / "config_differences.csv", records)
    rows = [[name, *(value or MISSING for value in values)] for name, values in table.items()]
    page_table = PageTable("", ["setting", *trained], rows, left=True)
    return [Section("What the arms' configurations differ in", tables=[page_table])]


def _runs(comparisons: Sequence[Comparison]) -> Section:
    titles = ["arm", "seed", "benchmark", "accuracy", "validation", "best epoch", "training, s", "folder"]
    rows = []
    for comparison in comparisons:
        for arm in comparison.arms:
            for run in arm.runs:
                accuracy = shown(run.metrics[ACCURACY]) if ACCURACY in run.metrics else MISSING
                best, seconds = run.facts.get("best_epoch"), run.facts.get("train_seconds")
                score = (run.facts.get("best_validation") or {}).get("value")
                row = [arm.label, str(run.seed), comparison.benchmark, accuracy]
                row.append(f"{score:.3f}" if isinstance(score, int | float) else MISSING)
                row += [MISSING if best is None else str(best + 1), MISSING if seconds is None else f"{seconds:.0f}"]
                rows.append([*row, run.folder.name])
    return Section("Runs", folded=PageTable(f"{len(rows)} runs", titles, rows))


def _explorer(evidence: Evidence, draw: _Drawer, out: Path) -> Explorer:
    found = profile.profile(evidence.rows, mask=evidence.mask)
    write_records(out / "critical_tokens.csv", profile.records(found))
    figures = draw("critical_tokens", profile_figure(found), f"Critical tokens of {len(evidence.rows):,} responses")
    held = evidence.rows[: evidence.most]
    note = (
        ""
        if len(held) == len(evidence.rows)
        else f"The first {len(held):,} of {len(evidence.rows):,} responses are here."
    )
    return Explorer(explorer_json(held, mask=evidence.mask, decode=evidence.decode), figures, note)
