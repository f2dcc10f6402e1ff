"""The comparison as a table: the same cells for the terminal (rich) and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cft.evaluation.intervals import Interval
from cft.report.arms import ACCURACY, MARK, Arm, Comparison
from cft.report.contrasts import contrast_metrics
from cft.report.text import one_line, printable

MISSING = "–"
_ARM_FOLDED = 24  # characters a line of an arm's name, where room is short
ARM, SEEDS, LOSS_ON, DIFFERENCE, P = "arm", "seeds", "loss on", "difference in accuracy", "p (Holm)"
RATE, VALIDATION = "lr", "validation"
# Metrics in the order of the table, after pass@k and maj@k; those that a comparison lacks are left out, others follow.
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
    "eval/distinct_1": "distinct-1",
    "val/loss_critical": "loss, critical",
    "val/loss_other": "loss, other",
}
_RATES = ("eval/cut_off_rate", "eval/undecided_rate", "eval/sampled_cut_off_rate", "eval/sampled_undecided_rate")
_IN_CSV_ONLY = ("eval/distinct_1", "val/loss_critical", "val/loss_other")


def shown(interval: Interval, *, digits: int = 3) -> str:
    """`0.612 [0.580, 0.641]`"""
    return f"{interval.value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def signed(interval: Interval) -> str:
    """`+0.031 [-0.004, +0.066]`"""
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """(column titles, one row an arm), as plain text. `*` marks an interval that is over seeds alone, `†` a difference
    between arms that were trained under other budgets, normalisers or data; where no difference is shown, the arm."""
    metrics = _shown_metrics(comparison)
    extra = [name for name in comparison.varying if name not in ("mask", "weighting", "loss", "optimizer.lr")]
    references = {arm.reference for arm in comparison.arms if arm.difference is not None}
    one_reference = len(references) == 1
    with_eligible = any(arm.mean_fact("eligible_fraction") is not None for arm in comparison.arms)
    with_rate = any(_rate(arm) != MISSING for arm in comparison.arms)
    with_validation = any(_validation(arm) != MISSING for arm in comparison.arms)
    titles = [ARM, *(one_line(name.rpartition(".")[2], limit=20) for name in extra), SEEDS, title(ACCURACY)]
    titles += [f"minus {next(iter(references))}" if one_reference else DIFFERENCE, P] if references else []
    titles += [*([LOSS_ON] if with_eligible else []), *([RATE] if with_rate else [])]
    titles += [*([VALIDATION] if with_validation else []), *map(title, metrics[1:])]
    rows = []
    for arm in comparison.arms:
        row = [one_line(arm.marked_label, limit=60), *(one_line(_entry(name, arm), limit=40) for name in extra)]
        row += [str(len(arm.runs) or MISSING), _metric(arm, ACCURACY)]
        if references:
            contrast = arm.contrasts.get(ACCURACY)
            to = ("" if one_reference else f" to {arm.reference}") + (MARK if arm.reference_marks else "")
            row.append(MISSING if contrast is None else signed(contrast.interval) + to)
            row.append(MISSING if contrast is None else p_text(contrast.holm).removeprefix("p ").removeprefix("= "))
        if with_eligible:
            share = arm.mean_fact("eligible_fraction")
            row.append(MISSING if share is None else f"{share:.0%}")
        row += [*([_rate(arm)] if with_rate else []), *([_validation(arm)] if with_validation else [])]
        rows.append(row + [_metric(arm, name) for name in metrics[1:]])
    return titles, rows


def _shown_metrics(comparison: Comparison) -> list[str]:
    """Accuracy first; of pass@k the smallest and the largest k, of maj@k the largest. All else is in the CSV files."""
    names = list(dict.fromkeys(name for arm in comparison.arms for name in arm.metrics))
    by_k = [name for name in names if name.rpartition("_at_")[2].isdecimal()]
    keep = {*contrast_metrics(comparison.arms), "eval/pass_at_1"}
    shown = [
        name
        for name in names
        if name not in (ACCURACY, *_IN_CSV_ONLY)
        and (name not in by_k or name in keep)
        and _informative(name, comparison)
    ]
    order = list(_TITLES)
    return [ACCURACY, *sorted(shown, key=lambda n: (n not in by_k, order.index(n) if n in order else len(order)))]


def _entry(name: str, arm: Arm) -> str:
    """A value that this arm took as its option has it is in the settings alone."""
    settings = (arm.runs[0].facts.get("settings") if arm.runs else None) or {}
    value = arm.key.get(name, settings.get(name))
    return MISSING if value is None else str(value)


def _rate(arm: Arm) -> str:
    """Learning rate, as an entry of the arm or from the settings; the arms of one table may differ in it."""
    rates = {run.arm.get("optimizer.lr", (run.facts.get("settings") or {}).get("optimizer.lr")) for run in arm.runs}
    return (
        "/".join(f"{rate:g}" if isinstance(rate, float) else one_line(str(rate), limit=12) for rate in rates - {None})
        or MISSING
    )


def _validation(arm: Arm) -> str:
    """Mean over seeds of the score that chose the best epoch (and, with --choose, the learning rate)."""
    scores = [(run.facts.get("best_validation") or {}).get("value") for run in arm.runs]
    known = [score for score in scores if isinstance(score, int | float)]
    return f"{sum(known) / len(known):.3f}" if known else MISSING


def title(metric: str) -> str:
    """`eval/pass_at_4` -> `pass@4`"""
    return _TITLES.get(metric) or one_line(
        metric.removeprefix("eval/").replace("_at_", "@").replace("_", " "), limit=40
    )


def heading(comparison: Comparison) -> str:
    where = f"{comparison.benchmark}, {comparison.split} split"
    return f"{one_line(where, limit=80)}: {comparison.problems} problems, mean over seeds [95 % interval]"


def markdown(comparisons: Sequence[Comparison]) -> str:
    """Every table as GitHub's markdown, all columns, with its heading and notes."""
    parts = []
    for comparison in comparisons:
        titles, rows = cells(comparison)
        lines = [titles, ["---"] * len(titles), *rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        parts.append("\n\n".join([heading(comparison), table, *map(printable, comparison.notes)]))
    return "\n\n".join(parts) + "\n"


def latex(comparisons: Sequence[Comparison]) -> str:
    r"""Every table for a paper: \usepackage{booktabs}, then \input{comparison.tex}. Columns that are not wanted go by hand."""
    parts = []
    for comparison in comparisons:
        titles, rows = cells(comparison)
        lines = [" & ".join(map(_latex, line)) + r" \\" for line in (titles, *rows)]
        notes = [f"% {line}" for note in comparison.notes for line in printable(note).splitlines()]
        parts.append(
            "\n".join(
                [
                    *notes,
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{_latex(heading(comparison))}}}",
                    rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}",
                    r"\toprule",
                    lines[0],
                    r"\midrule",
                    *lines[1:],
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _latex(text: str) -> str:
    """Plain text as LaTeX sets it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "†": r"$\dagger$"}
    special |= {sign: "\\" + sign for sign in "&%$#_{}"} | {"–": "--", "<": "$<$", ">": "$>$"}
    return "".join(special.get(sign, sign) for sign in one_line(text, limit=200))


def comparison_table(comparison: Comparison, *, width: int) -> Table:
    """For a terminal of `width` characters: arm and accuracy, then what else there is room for, in the order of
    `_priority`; below it, what was left out. Everything stands in the page, comparison.md and the CSV files."""
    titles, rows = cells(comparison)
    widths = [max(len(name), *(len(row[i]) for row in rows)) + 3 for i, name in enumerate(titles)]
    widths[0] = min(widths[0], _ARM_FOLDED + 3)  # names of arms fold
    keep: list[int] = []
    for i in sorted(range(len(titles)), key=lambda i: _priority(titles[i], i)):
        if sum(widths[j] for j in [*keep, i]) < width or len(keep) < 2:
            keep.append(i)
    left_out = [name for i, name in enumerate(titles) if i not in keep]
    caption = Text(f"No room here for {', '.join(left_out)}: see comparison.md.") if left_out else None
    table = Table(
        title=Text(heading(comparison)),
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        caption=caption,
        caption_justify="left",
    )
    for i in sorted(keep):
        table.add_column(Text(titles[i]), justify="left" if i == 0 else "right", no_wrap=i != 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[i]) for i in sorted(keep)))
    return table


def _priority(name: str, place: int) -> tuple[int, int]:
    """The lower, the sooner a column is shown: accuracy with its difference, what else was set, what explains it."""
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


def _metric(arm: Arm, name: str) -> str:
    measured = arm.metrics.get(name)
    if measured is None:
        return MISSING
    digits = 1 if name == "eval/response_tokens" else 3
    return shown(measured.interval, digits=digits) + ("*" if measured.scope == "seeds" else "")


def _informative(name: str, comparison: Comparison) -> bool:
    """A rate that is zero everywhere needs no column."""
    if name not in _RATES:
        return True
    return any(name in arm.metrics and arm.metrics[name].interval.value > 0 for arm in comparison.arms)
