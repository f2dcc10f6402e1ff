"""Figures as PNG bytes: accuracy of each arm with intervals beside the base model; share of critical tokens by kind.

Drawn on matplotlib's Agg canvas without pyplot: no display, no global state.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cft.report.compare import ACCURACY, BASE, Arm, Comparison
from cft.report.kinds import KindCount
from cft.report.table import title
from cft.report.text import one_line

DPI = 160
INK, MUTED, ACCENT, BASE_COLOR = "#1f2933", "#7b8794", "#2166ac", "#b2182b"


def accuracy_figure(comparison: Comparison, *, metrics: Sequence[str] = ()) -> bytes:
    """One panel a metric, one row an arm: mean, interval, and the single seeds as small dots.

    metrics: default accuracy, then pass@k and maj@k of the largest k that every arm has.
    """
    names = list(metrics) or _default_metrics(comparison)
    base = next((arm for arm in comparison.arms if arm.label.startswith(BASE)), None)
    arms = [arm for arm in comparison.arms if arm is not base] or list(comparison.arms)
    longest = max(len(arm.label) for arm in arms)
    width = 1.2 + 0.075 * min(longest, 40) + 3.1 * len(names)
    figure = Figure(figsize=(width, 1.35 + 0.42 * len(arms)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        _panel(panel, name, arms, base)
    panels[0].set_yticks(range(len(arms)), [one_line(arm.label, limit=40) for arm in arms])
    for label in panels[0].get_yticklabels():
        label.set_parse_math(False)  # names are not formulas
    panels[0].invert_yaxis()
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    where = one_line(f"{comparison.benchmark}, {comparison.split} split", limit=60)
    heading = figure.suptitle(
        f"{where}: {comparison.problems} problems; mean and 95 % interval over seeds and problems, dots are seeds",
        fontsize=8.5, color=MUTED, x=0.01, ha="left",
    )  # fmt: skip
    heading.set_parse_math(False)
    return _png(figure)


def critical_figure(counts: Sequence[KindCount]) -> bytes:
    """Share of critical tokens within each kind, with the counts beside the bars."""
    total, critical = sum(c.tokens for c in counts), sum(c.critical for c in counts)
    figure = Figure(figsize=(6.2, 1.2 + 0.36 * len(counts)), layout="constrained")
    axes = figure.subplots()
    shares = [count.critical / count.tokens for count in counts]
    axes.barh(range(len(counts)), shares, color=ACCENT, height=0.62)
    for i, (share, count) in enumerate(zip(shares, counts, strict=True)):
        axes.text(
            share + 0.01,
            i,
            f"{share:.0%}  ({count.critical:,} of {count.tokens:,})",
            va="center",
            fontsize=8,
            color=INK,
        )
    if total:
        axes.axvline(critical / total, color=BASE_COLOR, linewidth=1.2, linestyle="--")
    axes.set_yticks(range(len(counts)), [count.kind for count in counts])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max([*shares, 0.1]))
    axes.set_xticks([tick for tick in (0, 0.2, 0.4, 0.6, 0.8, 1.0) if tick <= axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _style(axes, "share of tokens that are critical")
    heading = f"Critical: {critical:,} of {total:,} response tokens ({critical / max(total, 1):.0%}, dashed line)"
    figure.suptitle(heading, fontsize=8.5, color=MUTED, x=0.01, ha="left")
    return _png(figure)


def _default_metrics(comparison: Comparison) -> list[str]:
    shared = [name for name in comparison.arms[0].metrics if all(name in arm.metrics for arm in comparison.arms)]
    chosen = [ACCURACY]
    for prefix in ("eval/pass_at_", "eval/maj_at_"):
        of_kind = [name for name in shared if name.startswith(prefix) and name.removeprefix(prefix).isdecimal()]
        chosen += sorted(of_kind, key=lambda name: int(name.rpartition("_")[2]))[-1:]
    return chosen


def _panel(panel: Axes, name: str, arms: Sequence[Arm], base: Arm | None) -> None:
    panel.xaxis.set_major_locator(MaxNLocator(5))
    if base is not None and name in base.metrics:
        interval = base.metrics[name].interval
        panel.axvspan(interval.low, interval.high, color=BASE_COLOR, alpha=0.10, linewidth=0)
        panel.axvline(
            interval.value, color=BASE_COLOR, linewidth=1.2, linestyle="--", label=f"base model {interval.value:.3f}"
        )
        panel.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=7.5, borderaxespad=0.1)
    for i, arm in enumerate(arms):
        if name not in arm.metrics:
            continue
        interval = arm.metrics[name].interval
        panel.plot([interval.low, interval.high], [i, i], color=ACCENT, linewidth=2.2, solid_capstyle="butt", zorder=2)
        values = [run.metrics[name].value for run in arm.runs if name in run.metrics]
        if len(values) > 1:
            panel.scatter(values, [i + 0.24] * len(values), s=9, color=MUTED, zorder=2, linewidths=0)
        panel.scatter([interval.value], [i], s=38, color=ACCENT, zorder=3)
        panel.annotate(
            f"{interval.value:.3f}", (interval.value, i), xytext=(0, 6), textcoords="offset points",
            ha="center", fontsize=8, color=INK,
        )  # fmt: skip
    panel.margins(x=0.12)
    _style(panel, title(name))


def _style(axes: Axes, label: str) -> None:
    axes.set_xlabel(label, fontsize=9, color=INK)
    axes.tick_params(labelsize=8.5, colors=INK, length=0)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#cbd2d9")


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
