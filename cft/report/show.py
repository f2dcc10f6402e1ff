"""One response in color: HTML in a notebook, rich text in a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult

from cft.annotation.kinds import token_texts
from cft.masks.base import Mask, mask_weights
from cft.masks.critical import Deciding
from cft.report.tokens import END, LEVELS, TURNING, USUAL_ALTERNATIVES, levels, terminal, visible
from cft.types import AnnotatedResponse, Outcome

# Dark text on light grounds, whatever the notebook's theme.
_STYLES = {
    "critical": "background:#d9363e;color:#fff;font-weight:600",
    "wavering": "background:#f3d774;color:#222",
    "untried": "text-decoration:underline dotted",
    "plain": "",
}
_FRAME = "font-family:ui-monospace,monospace;white-space:pre-wrap;line-height:1.7"
_OUTCOMES = {
    Outcome.RIGHT: "right",
    Outcome.WRONG: "wrong",
    Outcome.UNTRIED: "not tried",
    Outcome.CUT_OFF: "cut off",
    Outcome.UNDECIDED: "undecided",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """A response and the weights of its tokens.

    Args:
        row: Row of an annotation.
        weights: One per response token; tokens with a weight above 0 are red.
        meaning: Name and explanation of red.
    """

    row: AnnotatedResponse
    weights: NDArray[np.float32]
    meaning: tuple[str, str]

    def _repr_html_(self) -> str:
        """HTML for Jupyter. All text is escaped, since a model wrote it."""
        texts, kinds = token_texts(self.row), self._levels()
        tokens = "".join(
            f'<span style="{_STYLES[level]}" title="{escape(self._title(t), quote=True)}">{_text(text)}</span>'
            for t, (text, level) in enumerate(zip(texts, kinds, strict=True))
        )
        key = " ".join(
            f'<span style="{_STYLES[level]};padding:0 .3em">{escape(name)}</span> {escape(meaning)}.'
            for level, (name, meaning) in self._key().items()
        )
        return (
            f'<div style="{_FRAME}"><b>{escape(self.row.problem)}</b>\n{tokens}</div>'
            f'<div style="font-size:85%;opacity:.8">{key} Answer: {escape(self.row.answer)}.</div>'
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console, options
        yield terminal(self.row, self.weights)
        yield "; ".join(f"{name}: {meaning}" for name, meaning in self._key().values())

    def __repr__(self) -> str:
        """Critical tokens in brackets."""
        texts = zip(token_texts(self.row), self.weights > 0, strict=True)
        return "".join(f"[{text or END}]" if picked else text for text, picked in texts)

    def _levels(self) -> list[str]:
        return levels(self.row, self.weights)

    def _key(self) -> dict[str, tuple[str, str]]:
        """Level -> name and meaning, of the levels that occur in the response."""
        there = {*self._levels()}
        named = {level: (level, text) for level, text in LEVELS.items()} | {"critical": self.meaning}
        return {level: entry for level, entry in named.items() if level in there}

    def _title(self, t: int) -> str:
        """Tooltip of a token: its probability, and the outcome of each alternative."""
        row = self.row
        lines = [f"token {t}, p {np.exp(row.logprob[t]):.3f}, weight {self.weights[t]:g}"]
        for k, outcome in enumerate(row.alt_outcome[t].tolist()):
            answer = f", answer {row.alt_answer[t][k]}" if row.alt_answer[t][k] else ""
            lines.append(f"alternative {k + 1}: {_OUTCOMES[Outcome(outcome)]}{answer}")
        return "\n".join(lines)


def shown(row: AnnotatedResponse, *, mask: Mask | None = None) -> Shown:
    """mask: None = the tokens that decide it by two alternatives, or by as many as there are. Raises MaskError."""
    if mask is not None:
        return Shown(row, mask_weights(mask, row), ("picked", f"by mask {type(mask).__name__}"))
    if not row.alt_outcome.shape[1]:  # a rollout: nothing was tried
        return Shown(row, np.zeros(len(row.response_ids), dtype=np.float32), ("picked", "none"))
    held = min(USUAL_ALTERNATIVES, row.alt_outcome.shape[1])
    turning = ("turning", TURNING)
    meaning = ("critical", LEVELS["critical"]) if row.verdict == "right" else turning
    return Shown(row, mask_weights(Deciding(num_alternatives=held), row), meaning)


def _text(text: str) -> str:
    return escape(visible(text) or END)
