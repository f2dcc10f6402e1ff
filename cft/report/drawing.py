"""How the figures look, and what they become: PNG and PDF bytes, the same for the same data.

Drawn on matplotlib's canvases without pyplot: no display, no global state. Text that comes from runs is never a formula.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 160
INK, MUTED, ACCENT, BASE_COLOR = "#1f2933", "#7b8794", "#2166ac", "#b2182b"
# Okabe and Ito's colors, which the color-blind tell apart too; yellow left out.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5c4b8a", "#4d4d4d")

# Of a number that a line may cross.
BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}


def color_of(label: str, labels: Sequence[str]) -> str:
    """The same arm has the same color in every figure of a report."""
    return COLORS[labels.index(label) % len(COLORS)] if label in labels else MUTED


def style(axes: Axes, label: str, *, grid: str = "x") -> None:
    axes.set_xlabel(label, fontsize=9, color=INK).set_parse_math(False)
    axes.tick_params(labelsize=8.5, colors=INK, length=0)
    for line in axes.get_xgridlines() + axes.get_ygridlines():
        line.set_visible(False)
    axes.grid(axis=grid, color="#e4e7eb", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#cbd2d9")


def headline(figure: Figure, text: str) -> None:
    figure.suptitle(text, fontsize=8.5, color=MUTED, x=0.01, ha="left").set_parse_math(False)


def plain_ticks(axes: Axes) -> None:
    for label in [*axes.get_yticklabels(), *axes.get_xticklabels()]:
        label.set_parse_math(False)


def legend_below(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, with names as they are."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        found = figure.legend(
            handles,
            labels,
            loc="outside lower left",
            ncols=min(len(labels), 5),
            frameon=False,
            fontsize=8.5,
            handlelength=1.6,
        )
        for text in found.get_texts():
            text.set_parse_math(False)


def png_of(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def pdf_of(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="pdf", facecolor="white", metadata={"CreationDate": None, "Producer": None})
    return buffer.getvalue()
