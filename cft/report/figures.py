"""All figures of a report as PNG and PDF bytes, the same for the same data.

Drawn on matplotlib's canvases without pyplot: no display, no global state. Text from runs is never parsed as a formula.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from cft.evaluation.intervals import Interval
from cft.report.arm_names import BASE
from cft.report.arms import MARK, Comparison
from cft.report.contrasts import contrast_metrics
from cft.report.frames import RL_SAMPLES, mean_curve
from cft.report.read import GROUPS
from cft.report.tables import p_text, title
from cft.report.text import one_line

DPI = 160
INK, MUTED, ACCENT, BASE_COLOR = "#1f2933", "#7b8794", "#2166ac", "#b2182b"
# Okabe and Ito's color-blind-safe palette, without yellow.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5c4b8a", "#4d4d4d")
_BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}  # of a number that a line may cross
_LEARNING = {"train/loss": "training loss", "val/loss": "validation loss", "val/accuracy": "validation accuracy"}
_GROUPS = dict(
    zip(
        GROUPS,
        (
            *("loss, critical tokens", "loss, other tokens"),
            *("entropy, critical tokens (nats)", "entropy, other tokens (nats)"),
        ),
        strict=True,
    )
)
_PROFILE = {
    "kind": "of the tokens of a kind",
    "position": "of the tokens in this tenth of the response",
    "entropy": "of the tokens whose distribution has this entropy (nats)",
    "probability": "of the tokens of this probability",
}


def png_of(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def pdf_of(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="pdf", facecolor="white", metadata={"CreationDate": None, "Producer": None})
    return buffer.getvalue()


# ---- comparisons


def accuracy_figure(comparison: Comparison) -> Figure:
    """Panels of accuracy, and of pass@k and maj@k at the largest k that every arm has, one row per arm: mean, interval, single
    seeds as small dots, the base model as a band."""
    names = contrast_metrics(comparison.arms)
    base = next((arm for arm in comparison.arms if arm.label.startswith(BASE)), None)
    arms = [arm for arm in comparison.arms if arm is not base] or list(comparison.arms)
    figure, panels = _rows_of_panels([arm.marked_label for arm in arms], len(names), panel=3.1, margin=1.2, longest=40)
    for axes, name in zip(panels, names, strict=True):
        if base is not None and name in base.metrics:
            interval = base.metrics[name].interval
            label = f"base model {interval.value:.3f}"
            axes.axvspan(interval.low, interval.high, color=BASE_COLOR, alpha=0.10, linewidth=0)
            axes.axvline(interval.value, color=BASE_COLOR, linewidth=1.2, linestyle="--", label=label)
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=7.5, borderaxespad=0.1)
        for i, arm in enumerate(arms):
            if name in arm.metrics:
                interval = arm.metrics[name].interval
                seeds = [run.metrics[name].value for run in arm.runs if name in run.metrics]
                if len(seeds) > 1:
                    axes.scatter(seeds, [i + 0.24] * len(seeds), s=9, color=MUTED, zorder=2, linewidths=0)
                _interval(axes, i, interval, text=f"{interval.value:.3f}")
        axes.margins(x=0.12)
        _style(axes, title(name))
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    _headline(
        figure,
        f"{_where(comparison)}: {comparison.problems} problems; mean and 95 % interval over seeds and problems, dots are seeds",
    )
    return figure


def forest_figure(comparison: Comparison) -> Figure | None:
    """Each arm minus its reference: difference, 95 % interval, corrected p-value; None if there is nothing to compare."""
    arms = [arm for arm in comparison.arms if arm.contrasts]
    names = [name for name in contrast_metrics(comparison.arms) if any(name in arm.contrasts for arm in arms)]
    if not arms:
        return None
    labels = [f"{arm.label} minus {arm.reference}{MARK if arm.reference_marks else ''}" for arm in arms]
    figure, panels = _rows_of_panels(labels, len(names), panel=3.4, margin=0.6, longest=56)
    for axes, name in zip(panels, names, strict=True):
        axes.axvline(0, color=MUTED, linewidth=1)
        for i, contrast in enumerate(arm.contrasts.get(name) for arm in arms):
            if contrast is not None:
                text = f"{contrast.interval.value:+.3f}, {p_text(contrast.holm)}"
                _interval(axes, i, contrast.interval, text=text, filled=contrast.holm < 0.05)
        axes.margins(x=0.16)
        _style(axes, f"difference in {title(name)}")
    panels[0].set_ylim(len(arms) - 0.4, -0.7)
    _headline(figure, f"{_where(comparison)}: difference, 95 % interval, p-value after Holm's correction")
    return figure


def pass_figure(curves: pd.DataFrame, *, labels: Sequence[str], where: str) -> Figure | None:
    """pass@k over k with 95 % bands; None if no arm sampled more than once. curves: of `frames.pass_curves`."""
    largest = 0 if curves.empty else max(curves["k"])
    if largest < 2:
        return None
    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, curve in curves.groupby("arm", sort=False):
        ks, value, low, high = (curve[name].to_numpy(float) for name in ("k", "pass_at_k", "low", "high"))
        color = _color(str(label), labels)
        axes.plot(ks, value, color=color, marker="o", markersize=3.5, label=one_line(str(label), limit=40))
        axes.fill_between(ks, low, high, color=color, alpha=0.10, linewidth=0)
    if largest > 16:
        axes.set_xscale("log", base=2)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(min(largest, 8), integer=True, min_n_ticks=1))
    axes.set_ylabel("pass@k", fontsize=9, color=INK)
    _style(axes, "k, samples drawn", grid="y")
    _headline(figure, one_line(f"{where}: pass@k, 95 % bands over seeds and problems", limit=120))
    _legend_below(figure)
    return figure


def _rows_of_panels(
    labels: Sequence[str], panels: int, *, panel: float, margin: float, longest: int
) -> tuple[Figure, list[Axes]]:
    """Panels side by side with shared rows. panel, margin: in inches. longest: characters of the longest label."""
    width = margin + 0.075 * min(max(map(len, labels)), longest) + panel * panels
    figure = Figure(figsize=(width, 1.3 + 0.44 * len(labels)), layout="constrained")
    found = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    _name_rows(found[0], labels, longest=longest)
    for axes in found:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure, found


def _interval(axes: Axes, row: int, interval: Interval, *, text: str, filled: bool = True) -> None:
    axes.plot([interval.low, interval.high], [row, row], color=ACCENT, linewidth=2.2, solid_capstyle="butt", zorder=2)
    face = ACCENT if filled else "white"
    axes.scatter([interval.value], [row], s=40, zorder=3, linewidths=1.6, edgecolors=ACCENT, facecolors=face)
    axes.annotate(
        text, (interval.value, row), xytext=(0, 6), textcoords="offset points",
        ha="center", fontsize=8, color=INK, bbox=_BEHIND, zorder=4,
    )  # fmt: skip


def _where(comparison: Comparison) -> str:
    return one_line(f"{comparison.benchmark}, {comparison.split} split", limit=60)


# ---- training. curves: of `frames.learning_curves`


def learning_figure(curves: pd.DataFrame, *, labels: Sequence[str]) -> Figure | None:
    """Training loss, validation loss and accuracy over optimizer steps: mean of the seeds, each seed behind it."""
    measured = {*curves["metric"]}
    return _lines_figure(curves, [(text, name, "") for name, text in _LEARNING.items() if name in measured], labels)


def groups_figure(curves: pd.DataFrame, *, labels: Sequence[str]) -> Figure | None:
    """Loss and entropy on critical and on other tokens: of validation rows as points, of training steps as a thin line."""
    measured = {*curves["metric"]}
    wanted = [(text, f"val/{name}", f"train/{name}") for name, text in _GROUPS.items()]
    return _lines_figure(curves, [panel for panel in wanted if {*panel[1:]} & measured], labels)


def _by_arm(curves: pd.DataFrame, metric: str) -> dict[str, pd.DataFrame]:
    measured = curves[curves["metric"] == metric]
    return {str(label): pd.DataFrame(lines) for label, lines in measured.groupby("arm", sort=False)}


def _lines_figure(curves: pd.DataFrame, panels: Sequence[tuple[str, str, str]], labels: Sequence[str]) -> Figure | None:
    """panels: (title, metric, metric drawn thin behind it or "")."""
    if not panels:
        return None
    figure = Figure(figsize=(0.4 + 3.3 * len(panels), 3.3), layout="constrained")
    for axes, (name, metric, behind) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label, lines in _by_arm(curves, metric).items():
            color, mean = _color(label, labels), mean_curve(lines)
            runs = [run for _, run in lines.groupby("run")]
            for run in runs if len(runs) > 1 else []:
                axes.plot(run["step"], run["value"], color=color, linewidth=0.7, alpha=0.35)
            marker = "o" if len(mean) <= 12 else ""
            text = one_line(label, limit=40)
            axes.plot(mean.index, mean, color=color, linewidth=1.8, label=text, marker=marker, markersize=4)
        for label, lines in _by_arm(curves, behind).items():
            axes.plot(mean_curve(lines), color=_color(label, labels), linewidth=0.8, alpha=0.55)
        axes.set_title(name, fontsize=9, color=INK, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        axes.margins(y=0.1)
        _style(axes, "optimizer step", grid="y")
    _legend_below(figure)
    return figure


def compute_figure(spent: pd.DataFrame, *, rl_steps: float | None) -> Figure | None:
    """Seconds and tokens of each part side by side. spent: of `frames.compute_spent`."""
    names = [name for name in ("seconds", "tokens") if bool(spent[name].notna().any())]
    if not names:
        return None
    figure = Figure(figsize=(2.6 + 3.6 * len(names), 1.1 + 0.36 * len(spent)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    colors = [ACCENT if part.startswith("training") else MUTED for part in spent["part"]]
    for axes, name in zip(panels, names, strict=True):
        known = [0.0 if pd.isna(value) else float(value) for value in spent[name]]
        texts = ["not recorded" if pd.isna(value) else f"{value:,.0f}" for value in spent[name]]
        _bars(axes, known, texts, colors)
        axes.set_xlim(0, 1.3 * max([*known, 1e-9]))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _style(axes, name)
    _name_rows(panels[0], list(spent["part"]), longest=48)
    panels[0].invert_yaxis()
    decoded = f"; the annotation decodes as much as {rl_steps or 0:.1f} RL steps of {RL_SAMPLES} samples a problem"
    _headline(figure, f"Spent: annotation once, training a run{'' if rl_steps is None else decoded}")
    return figure


# ---- tokens


def profile_figure(
    profile: pd.DataFrame, *, responses: int, rank_correlation: dict[str, float], word: str = "critical"
) -> Figure:
    """Fraction of critical tokens by kind, place, entropy and probability. profile: of `tokens.profile`. word: what they are
    called."""
    tokens, critical = (int(profile.loc[profile["by"] == "kind", name].sum()) for name in ("tokens", "critical"))
    overall = critical / max(tokens, 1)
    figure = Figure(figsize=(12.4, 7.4), layout="constrained")
    for axes, (by, label) in zip(figure.subplots(2, 2).flat, _PROFILE.items(), strict=True):
        bins = [one for one in profile.to_dict("records") if one["by"] == by and one["tokens"]]
        fractions = [float(one["fraction"]) for one in bins]
        texts = [f"{one['fraction']:.0%}  ({one['critical']:,} of {one['tokens']:,})" for one in bins]
        _bars(axes, fractions, texts, [ACCENT] * len(bins))
        axes.axvline(overall, color=BASE_COLOR, linewidth=1.2, linestyle="--")
        _name_rows(axes, [one["bin"] for one in bins], longest=48)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.4 * max([*fractions, 0.1]))
        axes.set_xticks([tick for tick in (0, 0.2, 0.4, 0.6, 0.8, 1.0) if tick <= axes.get_xlim()[1]])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _style(axes, f"{word} fraction {label}")
    _headline(
        figure,
        f"{word.capitalize()}: {critical:,} of {tokens:,} tokens of {responses:,} responses ({overall:.0%}, dashed line). Rank "
        f"correlation of being {word} with entropy {rank_correlation['entropy']:+.2f}, with probability "
        f"{rank_correlation['probability']:+.2f}",
    )
    return figure


# ---- style


def _bars(axes: Axes, values: Sequence[float], texts: Sequence[str], colors: Sequence[str]) -> None:
    axes.barh(range(len(values)), values, color=colors, height=0.62)
    for i, (value, text) in enumerate(zip(values, texts, strict=True)):
        axes.annotate(
            text, (value, i), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8, color=INK, bbox=_BEHIND, zorder=4,
        )  # fmt: skip


def _color(label: str, labels: Sequence[str]) -> str:
    """Colors by label, the same in every figure of a report."""
    return COLORS[labels.index(label) % len(COLORS)] if label in labels else MUTED


def _style(axes: Axes, label: str, *, grid: str = "x") -> None:
    axes.set_xlabel(label, fontsize=9, color=INK).set_parse_math(False)
    axes.tick_params(labelsize=8.5, colors=INK, length=0)
    for line in axes.get_xgridlines() + axes.get_ygridlines():
        line.set_visible(False)
    axes.grid(axis=grid, color="#e4e7eb", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#cbd2d9")


def _headline(figure: Figure, text: str) -> None:
    figure.suptitle(text, fontsize=8.5, color=MUTED, x=0.01, ha="left").set_parse_math(False)


def _name_rows(axes: Axes, names: Sequence[str], *, longest: int) -> None:
    axes.set_yticks(range(len(names)), [one_line(name, limit=longest) for name in names])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)


def _legend_below(figure: Figure) -> None:
    """One legend for all panels; names are not parsed as formulas."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if labels:
        columns = int(figure.get_figwidth() / (0.6 + 0.075 * max(map(len, labels))))  # inches of an entry
        found = figure.legend(
            handles, labels, loc="outside lower left", ncols=max(1, min(len(labels), columns, 5)),
            frameon=False, fontsize=8.5, handlelength=1.6,
        )  # fmt: skip
        for text in found.get_texts():
            text.set_parse_math(False)
