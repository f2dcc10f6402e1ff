"""Figures of a comparison: accuracy of each arm with intervals beside the base model, and the forest plot of differences."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cft.report.arms import BASE, MARK, Arm, Comparison
from cft.report.contrasts import contrast_metrics
from cft.report.drawing import ACCENT, BASE_COLOR, BEHIND, INK, MUTED, headline, plain_ticks, style
from cft.report.table import p_text, title
from cft.report.text import one_line


def accuracy_figure(comparison: Comparison, *, metrics: Sequence[str] = ()) -> Figure:
    """One panel a metric, one row an arm: mean, interval, and the single seeds as small dots.

    metrics: default accuracy, then pass@k and maj@k of the largest k that every arm has.
    """
    names = list(metrics) or contrast_metrics(comparison.arms)
    base = next((arm for arm in comparison.arms if arm.label.startswith(BASE)), None)
    arms = [arm for arm in comparison.arms if arm is not base] or list(comparison.arms)
    longest = max(len(arm.label) for arm in arms)
    width = 1.2 + 0.075 * min(longest, 40) + 3.1 * len(names)
    figure = Figure(figsize=(width, 1.35 + 0.42 * len(arms)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        _panel(panel, name, arms, base)
    panels[0].set_yticks(range(len(arms)), [one_line(arm.marked_label, limit=40) for arm in arms])
    plain_ticks(panels[0])
    panels[0].invert_yaxis()
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    where = one_line(f"{comparison.benchmark}, {comparison.split} split", limit=60)
    headline(
        figure,
        f"{where}: {comparison.problems} problems; mean and 95 % interval over seeds and problems, dots are seeds",
    )
    return figure


def forest_figure(comparison: Comparison) -> Figure | None:
    """Each arm minus its reference: difference, 95 % interval, corrected p-value; None where there is nothing to compare."""
    arms = [arm for arm in comparison.arms if arm.contrasts]
    names = [name for name in contrast_metrics(comparison.arms) if any(name in arm.contrasts for arm in arms)]
    if not arms:
        return None
    labels = [f"{arm.label} minus {arm.reference}{MARK if arm.reference_marks else ''}" for arm in arms]
    width = 0.6 + 0.075 * min(max(map(len, labels)), 56) + 3.4 * len(names)
    figure = Figure(figsize=(width, 1.2 + 0.46 * len(arms)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        _differences(panel, name, arms)
    panels[0].set_yticks(range(len(arms)), [one_line(label, limit=56) for label in labels])
    plain_ticks(panels[0])
    panels[0].set_ylim(len(arms) - 0.4, -0.7)
    where = one_line(f"{comparison.benchmark}, {comparison.split} split", limit=60)
    headline(figure, f"{where}: difference, 95 % interval, p-value after Holm's correction")
    return figure


def _differences(panel: Axes, name: str, arms: Sequence[Arm]) -> None:
    panel.axvline(0, color=MUTED, linewidth=1)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    for i, arm in enumerate(arms):
        if (contrast := arm.contrasts.get(name)) is None:
            continue
        interval = contrast.interval
        clear = contrast.holm < 0.05
        panel.plot([interval.low, interval.high], [i, i], color=ACCENT, linewidth=2.2, solid_capstyle="butt", zorder=2)
        # Filled: below 5 % after the correction.
        panel.scatter(
            [interval.value],
            [i],
            s=40,
            zorder=3,
            linewidths=1.6,
            edgecolors=ACCENT,
            facecolors=ACCENT if clear else "white",
        )
        panel.annotate(
            f"{interval.value:+.3f}, {p_text(contrast.holm)}", (interval.value, i), xytext=(0, 6),
            textcoords="offset points", ha="center", fontsize=8, color=INK, bbox=BEHIND, zorder=4,
        )  # fmt: skip
    panel.margins(x=0.16)
    style(panel, f"difference in {title(name)}")


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
            ha="center", fontsize=8, color=INK, bbox=BEHIND, zorder=4,
        )  # fmt: skip
    panel.margins(x=0.12)
    style(panel, title(name))
