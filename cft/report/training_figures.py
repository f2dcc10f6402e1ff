"""Figures of training: learning curves, critical against other tokens, pass@k, and what was spent."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from cft.report.compute import Spent
from cft.report.curves import GROUPS, LEARNING, Curve, by_arm, mean_curve
from cft.report.drawing import ACCENT, INK, MUTED, color_of, headline, legend_below, plain_ticks, style
from cft.report.pass_curve import PassCurve
from cft.report.text import one_line

NAMES = {
    "train/loss": "training loss",
    "val/loss": "validation loss",
    "val/accuracy": "validation accuracy",
    "loss_critical": "loss, critical tokens",
    "loss_other": "loss, other tokens",
    "entropy_critical": "entropy, critical tokens (nats)",
    "entropy_other": "entropy, other tokens (nats)",
}


def learning_figure(curves: Sequence[Curve], *, labels: Sequence[str]) -> Figure | None:
    """Training loss, validation loss and accuracy over optimizer steps: mean of the seeds, each seed behind it."""
    names = [name for name in LEARNING if any(curve.metric == name for curve in curves)]
    return _panels(curves, [(NAMES[name], name, None) for name in names], labels=labels)


def groups_figure(curves: Sequence[Curve], *, labels: Sequence[str]) -> Figure | None:
    """Loss and entropy on critical and on other tokens: of validation rows as points, of training steps as a thin line."""
    measured = {curve.metric for curve in curves}
    wanted = [name for name in GROUPS if {f"val/{name}", f"train/{name}"} & measured]
    return _panels(curves, [(NAMES[name], f"val/{name}", f"train/{name}") for name in wanted], labels=labels)


def pass_figure(curves: Sequence[PassCurve], *, labels: Sequence[str], where: str) -> Figure | None:
    """pass@k over k with 95 % bands; None where no arm sampled more than once."""
    if not any(len(curve.points) > 1 for curve in curves):
        return None
    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        ks, intervals = list(curve.points), list(curve.points.values())
        color = color_of(curve.arm, labels)
        axes.plot(
            ks,
            [i.value for i in intervals],
            color=color,
            marker="o",
            markersize=3.5,
            label=one_line(curve.arm, limit=40),
        )
        axes.fill_between(
            ks, [i.low for i in intervals], [i.high for i in intervals], color=color, alpha=0.10, linewidth=0
        )
    largest = max(k for curve in curves for k in curve.points)
    if largest > 16:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(MaxNLocator(min(largest, 8), integer=True, min_n_ticks=1)) if largest <= 16 else None
    axes.set_ylabel("pass@k", fontsize=9, color=INK)
    style(axes, "k, samples drawn", grid="y")
    headline(figure, one_line(f"{where}: pass@k, 95 % bands over seeds and problems", limit=120))
    legend_below(figure, axes)
    return figure


def compute_figure(spent: Sequence[Spent], *, rl_steps: float | None) -> Figure | None:
    """Seconds and tokens of each part side by side."""
    panels = [("seconds", [s.seconds for s in spent]), ("tokens", [s.tokens for s in spent])]
    panels = [(name, values) for name, values in panels if any(value is not None for value in values)]
    if not panels:
        return None
    figure = Figure(figsize=(2.6 + 3.6 * len(panels), 1.1 + 0.36 * len(spent)), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, values) in zip(all_axes, panels, strict=True):
        known = [value or 0.0 for value in values]
        colors = [ACCENT if part.part.startswith("training") else MUTED for part in spent]
        axes.barh(range(len(spent)), known, color=colors, height=0.62)
        for i, value in enumerate(values):
            text = "not recorded" if value is None else f" {value:,.0f}"
            axes.text(known[i], i, text, va="center", fontsize=8, color=INK)
        axes.set_xlim(0, 1.3 * max([*known, 1e-9]))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        style(axes, name)
    all_axes[0].set_yticks(range(len(spent)), [one_line(part.part, limit=48) for part in spent])
    plain_ticks(all_axes[0])
    all_axes[0].invert_yaxis()
    scale = (
        ""
        if rl_steps is None
        else f"; the annotation decodes as much as {rl_steps:.1f} RL steps of 8 samples a problem"
    )
    headline(figure, f"Spent: annotation once, training a run{scale}")
    return figure


def _panels(
    curves: Sequence[Curve], panels: Sequence[tuple[str, str, str | None]], *, labels: Sequence[str]
) -> Figure | None:
    """panels: (title, metric, metric drawn thin behind it or None)."""
    if not panels:
        return None
    columns = min(len(panels), 4 if len(panels) == 4 else 3)
    figure = Figure(figsize=(0.4 + 3.3 * columns, 3.3), layout="constrained")
    for axes, (name, metric, behind) in zip(figure.subplots(1, columns, squeeze=False)[0], panels, strict=True):
        for arm, runs in by_arm(curves, metric=metric).items():
            _lines(axes, runs, color=color_of(arm, labels), label=one_line(arm, limit=40))
        for arm, runs in (by_arm(curves, metric=behind) if behind else {}).items():
            steps = mean_curve(runs)
            axes.plot(
                [s for s, _ in steps], [v for _, v in steps], color=color_of(arm, labels), linewidth=0.8, alpha=0.55
            )
        axes.set_title(name, fontsize=9, color=INK, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        axes.margins(y=0.1)
        style(axes, "optimizer step", grid="y")
    legend_below(figure, figure.axes[0])
    return figure


def _lines(axes: Axes, runs: Sequence[Curve], *, color: str, label: str) -> None:
    if len(runs) > 1:
        for run in runs:
            axes.plot([s for s, _ in run.points], [v for _, v in run.points], color=color, linewidth=0.7, alpha=0.35)
    mean = mean_curve(runs)
    few = len(mean) <= 12
    axes.plot(
        [s for s, _ in mean], [v for _, v in mean], color=color, linewidth=1.8, label=label,
        marker="o" if few else "", markersize=4,
    )  # fmt: skip
