"""Coloured transcripts: every response token on a background by how much the answer hangs on it.

    critical       the mask picks it: every alternative ended wrong
    wavering       the first alternative ended wrong, a later one right
    plain          the first alternative ended right, or nothing is known

`html_tokens` feeds the page (with each token's alternatives as a tooltip), `terminal` gives the same for a terminal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from cft.report.kinds import token_texts
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
_TERMINAL_STYLES = {"critical": "bold white on red3", "wavering": "black on light_goldenrod2", "plain": ""}


@dataclass(frozen=True, slots=True)
class Alternative:
    """What would have come of another token. probability in percent; answer "" where none was reached."""

    rank: int
    text: str
    probability: str
    answer: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Token:
    """A response token ready to show. name: its own text with spaces visible. level: critical, wavering or plain."""

    text: str
    name: str
    level: str
    special: bool
    probability: str
    entropy: str
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class Transcript:
    """One response. share: of its tokens that are critical, 0-1."""

    problem: str
    answer: str
    tokens: tuple[Token, ...]
    critical: int
    share: float


def transcript(row: AnnotatedResponse, mask: NDArray[np.float32], *, decode: Decode) -> Transcript:
    """mask: [R], > 0 = critical. Raises ValueError if it does not belong to the row."""
    levels = _levels(row, mask)
    tokens = tuple(
        Token(
            text=_visible(text) or _name(decode, int(row.response_ids[t])),
            name=_name(decode, int(row.response_ids[t])),
            level=levels[t],
            special=not text,
            probability=_percent(float(row.logprob[t])),
            entropy=f"{float(row.entropy[t]):.2f}",
            alternatives=tuple(_alternative(row, t, j, decode) for j in range(row.alt_ids.shape[1])),
        )
        for t, text in enumerate(token_texts(row))
    )
    critical = levels.count("critical")
    return Transcript(
        problem=printable(row.problem),
        answer=one_line(row.answer, limit=200),
        tokens=tokens,
        critical=critical,
        share=critical / max(len(levels), 1),
    )


def terminal(row: AnnotatedResponse, mask: NDArray[np.float32]) -> Text:
    """The response with critical tokens on red and wavering ones on yellow; print it with a rich console."""
    shown = Text()
    for text, level in zip(token_texts(row), _levels(row, mask), strict=True):
        shown.append(_visible(text) or END, style=_TERMINAL_STYLES[level])
    return shown


def legend() -> Text:
    shown = Text()
    for level, meaning in (("critical", "every alternative ends wrong"), ("wavering", "the first one does")):
        shown.append(f" {level} ", style=_TERMINAL_STYLES[level])
        shown.append(f" {meaning}   ")
    return shown


def _levels(row: AnnotatedResponse, mask: NDArray[np.float32]) -> list[str]:
    if len(mask) != len(row.response_ids):
        raise ValueError(f"response {row.response_id}: mask of {len(mask)} for {len(row.response_ids)} tokens")
    if not row.alt_outcome.shape[1]:
        return ["critical" if weight > 0 else "plain" for weight in mask]
    first_fails = np.isin(row.alt_outcome[:, 0], [Outcome.WRONG, Outcome.CUT_OFF])
    return [
        "critical" if weight > 0 else "wavering" if fails else "plain"
        for weight, fails in zip(mask, first_fails, strict=True)
    ]


def _alternative(row: AnnotatedResponse, t: int, j: int, decode: Decode) -> Alternative:
    return Alternative(
        # A given response may be less probable than its alternatives; a greedy one never is.
        rank=j + 1 + int(row.alt_logprob[t, j] <= row.logprob[t]),
        text=_name(decode, int(row.alt_ids[t, j])),
        probability=_percent(float(row.alt_logprob[t, j])),
        answer=one_line(row.alt_answer[t][j], limit=40),
        outcome=OUTCOME_WORDS[Outcome(int(row.alt_outcome[t, j]))],
    )


def _visible(text: str) -> str:
    """A line break shows its sign, so that one can see its colour, and still breaks the line."""
    return printable(text).replace("\n", "⏎\n")


def _name(decode: Decode, token: int) -> str:
    text = decode([token])
    return one_line(text, limit=40).replace(" ", "␣") if text else END


def _percent(logprob: float) -> str:
    share = 100 * math.exp(min(logprob, 0.0)) if math.isfinite(logprob) else 0.0
    return f"{share:.1f} %" if share >= 0.1 else "< 0.1 %"
