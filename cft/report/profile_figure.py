"""Figures of an annotation: which tokens are critical, by kind, place, entropy and probability."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cft.annotation.kinds import KindCount
from cft.report.drawing import ACCENT, BASE_COLOR, BEHIND, INK, headline, style
from cft.report.profile import Bin, Profile

LABELS = {
    "kind": "of the tokens of a kind",
    "position": "of the tokens in this tenth of the response",
    "entropy": "of the tokens whose distribution has this entropy (nats)",
    "probability": "of the tokens of this probability",
}


def critical_figure(counts: Sequence[KindCount]) -> Figure:
    """Share of critical tokens within each kind, with the counts beside the bars."""
    bins = [Bin("kind", count.kind, count.tokens, count.critical) for count in counts]
    figure = Figure(figsize=(6.2, 1.2 + 0.36 * len(bins)), layout="constrained")
    total, critical = sum(one.tokens for one in bins), sum(one.critical for one in bins)
    _bars(figure.subplots(), bins, overall=critical / max(total, 1), label="share of tokens that are critical")
    headline(
        figure, f"Critical: {critical:,} of {total:,} response tokens ({critical / max(total, 1):.0%}, dashed line)"
    )
    return figure


def profile_figure(found: Profile) -> Figure:
    """The four views side by side, two by two."""
    overall = found.critical / max(found.tokens, 1)
    figure = Figure(figsize=(12.4, 7.4), layout="constrained")
    for panel, (by, label) in zip(figure.subplots(2, 2).flat, LABELS.items(), strict=True):
        _bars(panel, found.of(by), overall=overall, label=f"critical share {label}")
    headline(
        figure,
        f"Critical: {found.critical:,} of {found.tokens:,} tokens of {found.responses:,} responses ({overall:.0%}, dashed "
        f"line). Rank correlation of being critical with entropy {found.rank_correlation['entropy']:+.2f}, with "
        f"probability {found.rank_correlation['probability']:+.2f}",
    )
    return figure


def _bars(axes: Axes, bins: Sequence[Bin], *, overall: float, label: str) -> None:
    axes.barh(range(len(bins)), [one.share for one in bins], color=ACCENT, height=0.62)
    for i, one in enumerate(bins):
        text = f"{one.share:.0%}  ({one.critical:,} of {one.tokens:,})"
        axes.text(one.share + 0.01, i, text, va="center", fontsize=8, color=INK, bbox=BEHIND, zorder=4)
    axes.axvline(overall, color=BASE_COLOR, linewidth=1.2, linestyle="--")
    axes.set_yticks(range(len(bins)), [one.label for one in bins])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max([*(one.share for one in bins), 0.1]))
    axes.set_xticks([tick for tick in (0, 0.2, 0.4, 0.6, 0.8, 1.0) if tick <= axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    style(axes, label)
