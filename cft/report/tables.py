"""The comparison as a table: the same cells for the terminal (rich), the page, markdown and LaTeX; and CSV files of any table.

Text that a spreadsheet would execute as a formula is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cft.evaluation.intervals import Interval
from cft.files import write_bytes
from cft.report.arms import ACCURACY, MARK, Arm, Comparison
from cft.report.contrasts import contrast_metrics
from cft.report.text import one_line, printable

MISSING = "–"
MAX_CELL_CHARS = 1000
_NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_ARM_FOLDED = 24  # characters per line of an arm's label when space is short
ARM, SEEDS, LOSS_ON, DIFFERENCE, P = "arm", "seeds", "loss on", "difference in accuracy", "p (Holm)"
RATE, VALIDATION = "lr", "validation"
# Metrics in the order of the table, after pass@k and maj@k; missing ones are skipped, others follow.
_TITLES = {
    ACCURACY: "accuracy",
    "eval/entropy": "entropy (nats)",
    "val/entropy_critical": "entropy, critical",
    "val/entropy_other": "entropy, other",
    "eval/distinct_2": "distinct-2",
    "eval/self_bleu": "self-BLEU",
    "eval/response_tokens": "tokens",
    "eval/cut_off_rate": "cut off",
    "eval/sampled_cut_off_rate": "samples cut off",
    "eval/undecided_rate": "undecided",
    "eval/sampled_undecided_rate": "samples undecided",
}
_RATES = ("eval/cut_off_rate", "eval/undecided_rate", "eval/sampled_cut_off_rate", "eval/sampled_undecided_rate")
_IN_CSV_ONLY = ("eval/distinct_1", "val/loss_critical", "val/loss_other")


# ---- values as text


def shown(interval: Interval, *, digits: int = 3) -> str:
    """`0.612 [0.580, 0.641]`"""
    return f"{interval.value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def signed(interval: Interval) -> str:
    """`+0.031 [-0.004, +0.066]`"""
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def title(metric: str) -> str:
    """`eval/pass_at_4` -> `pass@4`"""
    plain = metric.removeprefix("eval/").replace("_at_", "@").replace("_", " ")
    return _TITLES.get(metric) or one_line(plain, limit=40)


def heading(comparison: Comparison) -> str:
    where = f"{comparison.benchmark}, {comparison.split} split"
    return f"{one_line(where, limit=80)}: {comparison.problems} problems, mean over seeds [95 % interval]"


# ---- the table of a comparison


def cells(comparison: Comparison) -> pd.DataFrame:
    """One row per arm, as plain text. `*` marks an interval over seeds only, `†` a difference between arms trained with
    different budgets, normalizers or data (or the arm itself if no difference is shown)."""
    arms = comparison.arms
    columns = [(ARM, [one_line(arm.marked_label, limit=60) for arm in arms])]
    for name in comparison.varying:
        if name not in ("mask", "weighting", "loss", "optimizer.lr"):
            values = [one_line(str(arm.named.key.get(name, MISSING)), limit=40) for arm in arms]
            columns.append((one_line(name.rpartition(".")[2], limit=20), values))
    columns.append((SEEDS, [str(len(arm.runs) or MISSING) for arm in arms]))
    columns.append((title(ACCURACY), [_metric(arm, ACCURACY) for arm in arms]))
    if references := {arm.reference for arm in arms if arm.difference is not None}:
        one = len(references) == 1
        columns.append((f"minus {min(references)}" if one else DIFFERENCE, [_difference(arm, one) for arm in arms]))
        columns.append((P, [_p(arm) for arm in arms]))
    for name, values in (
        (LOSS_ON, [_percent(arm.mean("eligible_fraction")) for arm in arms]),
        (RATE, [_rate(arm) for arm in arms]),
        (VALIDATION, [_validation(arm) for arm in arms]),
    ):
        if {*values} != {MISSING}:
            columns.append((name, values))
    columns += [(title(name), [_metric(arm, name) for arm in arms]) for name in _shown_metrics(comparison)[1:]]
    table = pd.DataFrame([values for _, values in columns], dtype=object).T
    return table.set_axis([name for name, _ in columns], axis="columns")


def _shown_metrics(comparison: Comparison) -> list[str]:
    """Accuracy first; avg@k, pass@k and maj@k at the largest k only (pass@1 is avg@k); no rate that is zero everywhere.
    Everything else is in the CSV files."""
    names = list(dict.fromkeys(name for arm in comparison.arms for name in arm.metrics))
    by_k = [name for name in names if name.rpartition("_at_")[2].isdecimal()]
    zero = [n for n in _RATES if not any(n in a.metrics and a.metrics[n].interval.value > 0 for a in comparison.arms)]
    contrasted = contrast_metrics(comparison.arms)
    averaged = any(name.startswith("eval/avg_at_") for name in contrasted)
    kept = {*contrasted, *(() if averaged else ("eval/pass_at_1",))}
    out = {ACCURACY, *_IN_CSV_ONLY, *zero, *(name for name in by_k if name not in kept)}
    order = list(_TITLES)
    place = {name: (name not in by_k, order.index(name) if name in order else len(order)) for name in names}
    return [ACCURACY, *sorted([name for name in names if name not in out], key=place.__getitem__)]


def _metric(arm: Arm, name: str) -> str:
    measured = arm.metrics.get(name)
    if measured is None:
        return MISSING
    digits = 1 if name == "eval/response_tokens" else 3
    return shown(measured.interval, digits=digits) + ("*" if measured.scope == "seeds" else "")


def _difference(arm: Arm, one_reference: bool) -> str:
    to = ("" if one_reference else f" to {arm.reference}") + (MARK if arm.reference_marks else "")
    return MISSING if arm.difference is None else signed(arm.difference) + to


def _p(arm: Arm) -> str:
    contrast = arm.contrasts.get(ACCURACY)
    return MISSING if contrast is None else p_text(contrast.holm).removeprefix("p ").removeprefix("= ")


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0%}"


def _rate(arm: Arm) -> str:
    """Learning rate, as given or from the settings; it may differ between the arms of a table."""
    given = [run.results.settings.get("optimizer.lr", run.arm.get("optimizer.lr")) for run in arm.runs]
    rates = dict.fromkeys(
        f"{r:g}" if isinstance(r, float) else one_line(str(r), limit=12) for r in given if r is not None
    )
    return "/".join(rates) or MISSING


def _validation(arm: Arm) -> str:
    """Mean over seeds of the score that chose the best epoch (and, with --choose, the learning rate)."""
    known = [score for run in arm.runs if (score := run.validation_score) is not None]
    return f"{sum(known) / len(known):.3f}" if known else MISSING


# ---- the table elsewhere


def print_tables(comparisons: Sequence[Comparison]) -> None:
    """To the terminal, with their notes."""
    console = Console(soft_wrap=False)
    for comparison in comparisons:
        console.print(comparison_table(comparison, width=console.width))
        for note in comparison.notes:
            console.print(printable(note), style="dim", markup=False)


def comparison_table(comparison: Comparison, *, width: int) -> Table:
    """The table for a terminal of `width` characters: arm and accuracy, then further columns by `_priority` while they fit; the
    caption names the others. All columns are in the page, comparison.md and the CSV files."""
    table = cells(comparison)
    titles, rows = [str(name) for name in table], table.to_numpy().tolist()
    widths = [max(len(name), *(len(row[i]) for row in rows)) + 3 for i, name in enumerate(titles)]
    widths[0] = min(widths[0], _ARM_FOLDED + 3)  # names of arms fold
    keep: list[int] = []
    for i in sorted(range(len(titles)), key=lambda i: _priority(titles[i], i)):
        if sum(widths[j] for j in [*keep, i]) < width or len(keep) < 2:
            keep.append(i)
    left_out = [name for i, name in enumerate(titles) if i not in keep]
    caption = Text(f"No space here for {', '.join(left_out)}: see comparison.md.") if left_out else None
    found = Table(
        title=Text(heading(comparison)),
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        caption=caption,
        caption_justify="left",
    )
    for i in sorted(keep):
        found.add_column(Text(titles[i]), justify="left" if i == 0 else "right", no_wrap=i != 0, overflow="fold")
    for row in rows:
        found.add_row(*(Text(row[i]) for i in sorted(keep)))
    return found


def _priority(name: str, place: int) -> tuple[int, int]:
    """Columns with a lower value are shown first: accuracy with its difference, settings, explanatory metrics."""
    order = (
        name == ARM,
        name == title(ACCURACY),
        name == DIFFERENCE or name.startswith("minus "),
        name == SEEDS,
        name == P,
        name == LOSS_ON,
        name.startswith(("pass@", "maj@")),
        name in (RATE, title("eval/entropy")),
    )
    return (order.index(True) if True in order else len(order)), place


def markdown(comparisons: Sequence[Comparison]) -> str:
    """Every table as GitHub's markdown, all columns, with its heading and notes."""
    parts = []
    for comparison in comparisons:
        table = cells(comparison).rename(columns=_in_cell).map(_in_cell).to_markdown(index=False, disable_numparse=True)
        parts.append("\n\n".join([heading(comparison), table, *map(printable, comparison.notes)]))
    return "\n\n".join(parts) + "\n"


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")


def latex(comparisons: Sequence[Comparison]) -> str:
    r"""Every table for a paper: \usepackage{booktabs}, then \input{comparison.tex}. Delete unwanted columns by hand."""
    parts = []
    for comparison in comparisons:
        notes = [f"% {line}\n" for note in comparison.notes for line in printable(note).splitlines()]
        table = cells(comparison).map(_latex)
        titles, form = [_latex(str(name)) for name in table], f"l{'r' * (table.shape[1] - 1)}"
        style = table.set_axis(range(table.shape[1]), axis="columns").style  # it wants names of columns that differ
        style.hide(axis="index")
        style.format_index(lambda i, titles=titles: titles[i], axis="columns")
        caption = _latex(heading(comparison))
        text = style.to_latex(hrules=True, caption=caption, column_format=form, position_float="centering")
        parts.append("".join(notes) + text)
    return "\n".join(parts)


def _latex(text: str) -> str:
    """Plain text escaped for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "†": r"$\dagger$"}
    special |= {sign: "\\" + sign for sign in "&%$#_{}"} | {"–": "--", "<": "$<$", ">": "$>$"}
    return "".join(special.get(sign, sign) for sign in one_line(text, limit=200))


# ---- CSV


def write_csv(path: Path, table: pd.DataFrame) -> None:
    rows = [[cell(value) for value in row] for row in table.astype(object).itertuples(index=False)]
    safe = pd.DataFrame(rows, columns=[cell(name) for name in table], dtype=object)  # whole numbers stay whole
    write_bytes(path, safe.to_csv(index=False, lineterminator="\r\n").encode())


def cell(value: Any) -> str | int | float:
    """A value as a cell: numbers stay numbers, negative ones too; text that starts with = + - @ gets a quote mark."""
    if value is None or value != value:  # not a number: not defined
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = one_line(str(value), limit=MAX_CELL_CHARS)
    if text.lstrip().startswith(("=", "+", "-", "@")) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text
