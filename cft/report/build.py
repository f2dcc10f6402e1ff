"""Writes a report into one folder: report.html, each figure as PNG and PDF, each number as CSV, the tables
of the page as markdown (comparison.md) and LaTeX (comparison.tex).

comparison.csv  a row a run             curves.csv           what was logged while training
arms.csv        a row an arm            pass_at_k.csv        pass@k for every k
differences.csv a row a contrast        compute.csv          annotation beside training
config_differences.csv                  critical_tokens.csv  which tokens are critical (with an annotation)
continual.csv, continual_measures.csv   the accuracies and forgetting of a sequence of data sets

An earlier report in the folder is replaced: files of these names are deleted, all others are kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cft import __version__
from cft.files import write_bytes
from cft.report import figures, frames, tokens
from cft.report.arms import ACCURACY, Comparison
from cft.report.choice import Choice
from cft.report.continual import Matrix, matrix_frame, measures_frame
from cft.report.continual import sections as sections_of
from cft.report.explorer import explorer_json
from cft.report.page import Explorer, PageFigure, PageTable, Section, write_page
from cft.report.tables import MISSING, cells, heading, latex, markdown, shown, write_csv
from cft.report.text import one_line
from cft.report.tokens import Evidence
from cft.runs.lineage import annotation_contents

PAGE = "report.html"
# Files beside the page; those of a comparison are numbered if there are several comparisons.
_WRITTEN = re.compile(
    r"(continual|continual_measures|comparison|arms|curves|differences|config_differences|compute|critical_tokens|pass_at_k(-\d+)?)\.csv|comparison\.(md|tex)|"
    r"((comparison|differences|pass_at_k|continual)(-\d+)?|learning_curves|critical_and_other|compute|critical_tokens)\.(png|pdf)"
)
LEARNING = (
    "Mean over seeds, each seed thin behind it. A loss is over the tokens that its arm's mask picks: arms of different masks "
    "differ in it without being better or worse"
)
GROUPS = "Loss and entropy apart: points are validation rows at the end of an epoch, thin lines training batches"
FOREST = "Differences, paired by problem; filled: p below 0.05 after Holm's correction over all contrasts of the metric"
COMPUTE = "Tokens: decoded for the annotation, response tokens seen in training. Seconds: each on its own machine."
SEEDS_ONLY = "* interval over seeds alone: the values of single problems are not recorded."
INTERVALS = (
    "95 %: problems resampled 2,000 times, the seeds' part drawn from a two-way random model (cft/evaluation/intervals.py); "
    "differences are paired by problem, their p-values come from 10,000 such draws, from McNemar's exact test where each arm "
    "has one seed, and are corrected by Holm's procedure over all contrasts of a metric"
)


def build_report(
    out: Path,
    *,
    comparisons: Sequence[Comparison],
    evidence: Evidence | None,
    title: str,
    lead: str = "",
    choices: Sequence[Choice] = (),
    continual: Sequence[Matrix] = (),
) -> Path:
    """Write the report.

    Args:
        out: Folder, made if it does not exist.
        comparisons: Empty for a report on an annotation alone.
        evidence: None for a report without the token explorer.
        title: Title of the page.
        lead: A sentence below the title, "" for none.
        choices: Result of `cft.report.choice.choose`.
        continual: Of `cft.report.continual.sequences`.

    Returns:
        Path of the page.
    """
    _remove_earlier(out)
    write = _Writer(out, frames.labels_of(comparisons))
    sections = sections_of(continual, write.figure)
    if continual:
        write.csv("continual", matrix_frame(continual))
        write.csv("continual_measures", measures_frame(continual))
    sections += [
        _results(comparison, number, len(comparisons), write) for number, comparison in enumerate(comparisons, 1)
    ]
    if choices:
        sections.append(_chosen(choices))
    if comparisons:
        sections += [
            _training(comparisons, write),
            _spent(comparisons, evidence.manifest if evidence else {}, write),
            _settings(comparisons, write),
            _runs(comparisons),
        ]
        write.csv("comparison", frames.runs_frame(comparisons))
        write.csv("arms", frames.arms_frame(comparisons))
        write.csv("differences", frames.differences_frame(comparisons))
        write_bytes(out / "comparison.md", markdown(comparisons).encode())
        write_bytes(out / "comparison.tex", latex(comparisons).encode())
    page = out / PAGE
    write_page(
        page,
        title=title,
        lead=lead,
        sections=[s for s in sections if s.tables or s.figures or s.folded],
        explorer=_explorer(evidence, write) if evidence and evidence.rows else None,
        facts=facts_of(comparisons),
    )
    return page


def written_by_a_report(name: str) -> bool:
    """Whether a report writes files of this name beside its page."""
    return _WRITTEN.fullmatch(name) is not None


def facts_of(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Facts recorded by the runs: model, annotation, hyperparameters shared by all arms, evaluation, budget."""
    facts: dict[str, set[str]] = {}
    keys = [(arm.named.key, run.results) for _, arm in frames.each_arm(comparisons) for run in arm.runs]
    for key, results in keys:
        data = results.data or {}
        told = {f"arm: {name}": value for name, value in key.items()}
        told |= {f"evaluation: {name}": value for name, value in results.evaluation.items()}
        told |= {f"budget: {name}": value for name, value in (results.budget or {}).items()}
        told |= {"annotation": data.get("annotation"), "rows": data.get("rows")}
        told |= {f"{'rows' if 'rows' in data else 'annotation: conditions'}, SHA-256": data.get("fingerprint")}
        told |= {"annotation: contents, SHA-256": annotation_contents(results.lineage) or None}
        for name, value in told.items():
            if value is not None:
                facts.setdefault(name, set()).add(str(value))
    joined = {name: " | ".join(sorted(values)) for name, values in facts.items()}
    return {**joined, "cft": __version__, "intervals": INTERVALS}


def _remove_earlier(out: Path) -> None:
    """Files of an earlier report in the folder. Its page is replaced last, so that an interrupted report is recognized as
    one."""
    if (out / PAGE).is_file():
        for path in [path for path in out.iterdir() if written_by_a_report(path.name) and path.is_file()]:
            path.unlink()


@dataclass(frozen=True, slots=True)
class _Writer:
    """Files of figures and tables. labels: of all arms, for their colors."""

    out: Path
    labels: Sequence[str]

    def figure(self, name: str, figure: Figure | None, caption: str) -> list[PageFigure]:
        if figure is None:
            return []
        png = figures.png_of(figure)
        write_bytes(self.out / f"{name}.png", png)
        write_bytes(self.out / f"{name}.pdf", figures.pdf_of(figure))
        return [PageFigure(one_line(caption, limit=200), png)]

    def csv(self, name: str, table: pd.DataFrame) -> None:
        if not table.empty:
            write_csv(self.out / f"{name}.csv", table)


# ---- sections of the page


def _results(comparison: Comparison, number: int, of: int, write: _Writer) -> Section:
    suffix = "" if of == 1 else f"-{number}"
    where = one_line(f"{comparison.benchmark}, {comparison.split} split", limit=80)
    table, passes = cells(comparison), frames.pass_curves(comparison)
    notes = list(comparison.notes)
    if table.map(lambda value: value.endswith("]*")).any(axis=None):
        notes.append(SEEDS_ONLY)
    write.csv(f"pass_at_k{suffix}", passes)
    passed = figures.pass_figure(passes, labels=write.labels, where=where)
    drawn = [
        *write.figure(f"comparison{suffix}", figures.accuracy_figure(comparison), f"Arms on {where}"),
        *write.figure(f"differences{suffix}", figures.forest_figure(comparison), FOREST),
        *write.figure(f"pass_at_k{suffix}", passed, f"pass@k on {where}"),
    ]
    return Section(heading(comparison), tables=[PageTable(table, notes=notes)], figures=drawn)


def _chosen(choices: Sequence[Choice]) -> Section:
    """The values tried on validation problems, and the chosen ones."""
    key = choices[0].key
    names = [n for n in choices[0].arm if len({str(c.arm.get(n)) for c in choices}) > 1] or ["mask"]
    rows = [
        {
            **{name: str(choice.arm.get(name, MISSING)) for name in names},
            key: value,
            "metric": choice.metric,
            "mean": f"{sum(scores) / len(scores):.4f}",
            "each seed": " ".join(f"{score:.3f}" for score in scores),
            "": "chosen" if value == choice.chosen else "",
        }
        for choice in choices
        for value, scores in choice.scores.items()
    ]
    lead = f"{key} of each arm by its mean score on validation problems; test results play no part."
    return Section(f"Choice of {key}", lead, [PageTable(pd.DataFrame(rows))])


def _training(comparisons: Sequence[Comparison], write: _Writer) -> Section:
    curves = frames.learning_curves(comparisons)
    write.csv("curves", curves.drop(columns="run"))
    drawn = [
        *write.figure("learning_curves", figures.learning_figure(curves, labels=write.labels), LEARNING),
        *write.figure("critical_and_other", figures.groups_figure(curves, labels=write.labels), GROUPS),
    ]
    return Section("Training", figures=drawn)


def _spent(comparisons: Sequence[Comparison], manifest: Mapping[str, Any], write: _Writer) -> Section:
    spent = frames.compute_spent(comparisons, manifest=manifest)
    write.csv("compute", spent)
    figure = figures.compute_figure(spent, rl_steps=frames.rl_steps(manifest))
    return Section("Compute spent", figures=write.figure("compute", figure, COMPUTE))


def _settings(comparisons: Sequence[Comparison], write: _Writer) -> Section:
    """Settings that differ among the trained arms; an arm in several comparisons is listed once."""
    table = frames.settings_frame(comparisons)
    write.csv("config_differences", table)
    tables = [] if table.empty else [PageTable(table.replace("", MISSING), left=True)]
    return Section("What the arms' configurations differ in", tables=tables)


def _runs(comparisons: Sequence[Comparison]) -> Section:
    rows = []
    for comparison, arm in frames.each_arm(comparisons):
        for run in arm.runs:
            best, seconds, score = run.results.best_epoch, run.results.train_seconds, run.validation_score
            rows.append(
                {
                    "arm": arm.label,
                    "seed": str(run.seed),
                    "benchmark": comparison.benchmark,
                    "accuracy": shown(run.metrics[ACCURACY]) if ACCURACY in run.metrics else MISSING,
                    "validation": MISSING if score is None else f"{score:.3f}",
                    "best epoch": MISSING if best is None else str(best + 1),
                    "training, s": MISSING if seconds is None else f"{seconds:.0f}",
                    "folder": run.folder.name,
                }
            )
    return Section("Runs", folded=PageTable(pd.DataFrame(rows), heading=f"{len(rows)} runs"))


def _explorer(evidence: Evidence, write: _Writer) -> Explorer:
    rows, held = evidence.rows, evidence.rows[: evidence.most]
    profile, correlation = tokens.profile(rows, mask=evidence.mask)
    write.csv("critical_tokens", profile)
    figure = figures.profile_figure(profile, responses=len(rows), rank_correlation=correlation, word=evidence.word)
    drawn = write.figure("critical_tokens", figure, f"{evidence.word.capitalize()} tokens of {len(rows):,} responses")
    note = "" if len(held) == len(rows) else f"The first {len(held):,} of {len(rows):,} responses are here."
    return Explorer(explorer_json(held, mask=evidence.mask, decode=evidence.decode), drawn, note, evidence.word)
