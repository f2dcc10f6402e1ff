"""Colored transcripts: every response token on a background by how much the answer hangs on it.

    critical       the mask picks it: every alternative that it counts ended wrong or was cut off
    wavering       the first alternative did, another ended right or is undecided
    plain          the first alternative ended right, or nothing is known

`cft/report/explorer.py` gives them to the page, with each token's alternatives; `terminal` shows them in a terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from cft.annotation.kinds import token_texts
from cft.report.text import one_line, printable
from cft.types import AnnotatedResponse, Outcome

Decode = Callable[[Sequence[int]], str]  # ids -> text, special tokens shown

END = "⏹"
OUTCOME_WORDS = {
    Outcome.RIGHT: "right",
    Outcome.WRONG: "wrong",
    Outcome.UNTRIED: "not tried",
    Outcome.CUT_OFF: "cut off",
    Outcome.UNDECIDED: "undecided",
}
MEANINGS = {
    "critical": "every alternative that the mask counts ends wrong or is cut off",
    "wavering": "the first one does, not every one",
}
_TERMINAL_STYLES = {"critical": "bold white on red3", "wavering": "black on light_goldenrod2", "plain": ""}


def terminal(row: AnnotatedResponse, mask: NDArray[np.float32]) -> Text:
    """The response with critical tokens on red and wavering ones on yellow; print it with a rich console."""
    shown = Text()
    for text, level in zip(token_texts(row), levels(row, mask), strict=True):
        shown.append(visible(text) or END, style=_TERMINAL_STYLES[level])
    return shown


def legend() -> Text:
    shown = Text()
    for level, meaning in MEANINGS.items():
        shown.append(f" {level} ", style=_TERMINAL_STYLES[level])
        shown.append(f" {meaning}   ")
    return shown


def levels(row: AnnotatedResponse, mask: NDArray[np.float32]) -> list[str]:
    """Of each token: critical, wavering or plain. Raises ValueError if the mask does not belong to the row."""
    if len(mask) != len(row.response_ids):
        raise ValueError(f"response {row.response_id}: mask of {len(mask)} for {len(row.response_ids)} tokens")
    if not row.alt_outcome.shape[1]:
        return ["critical" if weight > 0 else "plain" for weight in mask]
    first_fails = np.isin(row.alt_outcome[:, 0], [Outcome.WRONG, Outcome.CUT_OFF])
    return [
        "critical" if weight > 0 else "wavering" if fails else "plain"
        for weight, fails in zip(mask, first_fails, strict=True)
    ]


def visible(text: str) -> str:
    """A line break shows its sign, so that one can see its color, and still breaks the line."""
    return printable(text).replace("\n", "⏎\n")


def token_name(decode: Decode, token: int) -> str:
    """A token's own text on one line, spaces visible."""
    text = decode([token])
    return one_line(text, limit=40).replace(" ", "␣") if text else END
