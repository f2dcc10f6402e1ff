"""Every annotated response as one compact piece of JSON, which the page's script draws from: the token explorer.

Columns over all tokens of all responses, little-endian numbers in base64 behind their type ("u2:..."), texts once in
tables. 2,000 responses of 40 tokens take 2.5 MB, and nothing is drawn before it is scrolled to.

    word        what level 2 is called: critical, or turning in responses that end wrong
    count       tokens of each response                    text, length     what is shown, and how much of it each token has
    name, id    texts of the vocabulary that occurs        logprob, entropy 1/1000 nat, the former negated
    alternative, alternative_logprob, outcome, answer_id   [tokens x K], row by row; answers: the texts of answer_id
    level       0 plain, 1 wavering, 2 critical, 3 untried kind             index into kinds
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cft.annotation.kinds import KINDS, kind_of, token_texts
from cft.masks.base import Mask
from cft.masks.critical import deciding_word
from cft.report.text import one_line, printable
from cft.report.tokens import END, Decode, levels, visible
from cft.types import AnnotatedResponse, Outcome

LEVELS = ("plain", "wavering", "critical", "untried")
OUTCOME_WORDS = {
    Outcome.RIGHT: "right",
    Outcome.WRONG: "wrong",
    Outcome.UNTRIED: "not tried",
    Outcome.CUT_OFF: "cut off",
    Outcome.UNDECIDED: "undecided",
}
OUTCOMES = sorted(OUTCOME_WORDS)  # the codes; their index is stored
MAX_PROBLEM_CHARS = 20_000


class _Texts:
    """Distinct texts, each with its number in the order of first appearance."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)


def explorer_json(rows: Sequence[AnnotatedResponse], *, mask: Mask, decode: Decode) -> str:
    """JSON that may be inside a script element: it holds no "<". rows have the same K."""
    names, answers = _Texts(), _Texts()
    number_of: dict[int, int] = {}  # token id -> number of its name

    def name(token: int) -> int:
        if token not in number_of:
            number_of[token] = names.number(_token_name(decode([token])))
        return number_of[token]

    text: list[str] = []
    columns: dict[str, list[Any]] = {key: [] for key in ("length", "level", "kind", "id", "alternative", "answer_id")}
    for row in rows:
        shown = [visible(piece) for piece in token_texts(row)]
        text += shown
        columns["length"] += [len(piece.encode("utf-16-le", "surrogatepass")) // 2 for piece in shown]
        columns["level"] += [LEVELS.index(level) for level in levels(row, mask(row))]
        columns["kind"] += [KINDS.index(kind_of(piece)) for piece in token_texts(row)]
        columns["id"] += [name(token) for token in row.response_ids.tolist()]
        columns["alternative"] += [name(token) for token in row.alt_ids.ravel().tolist()]
        columns["answer_id"] += [answers.number(one_line(a, limit=40)) for position in row.alt_answer for a in position]
    floats = {
        "logprob": [row.logprob for row in rows],
        "entropy": [row.entropy for row in rows],
        "alternative_logprob": [row.alt_logprob.ravel() for row in rows],
    }
    outcomes = [OUTCOMES.index(Outcome(int(code))) for row in rows for code in row.alt_outcome.ravel()]
    data = {
        "word": deciding_word(rows),
        "k": rows[0].alt_ids.shape[1] if rows else 0,
        "kinds": list(KINDS),
        "outcomes": [OUTCOME_WORDS[Outcome(code)] for code in OUTCOMES],
        "problem": [printable(row.problem)[:MAX_PROBLEM_CHARS] for row in rows],
        "gold": [one_line(row.answer, limit=200) for row in rows],
        "count": [len(row.response_ids) for row in rows],
        "text": "".join(text),
        "name": list(names),
        "answers": list(answers),
        **{key: packed(values) for key, values in columns.items()},
        **{key: packed(thousandths(parts)) for key, parts in floats.items()},
        "outcome": packed(outcomes),
    }
    # A "<" could end the script element or open a comment in it; inside a JSON string its escape means the same.
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _token_name(text: str) -> str:
    """A token's own text on one line, spaces visible."""
    return one_line(text, limit=40).replace(" ", "␣") if text else END


def packed(values: Sequence[int] | NDArray[np.integer]) -> str:
    """Whole numbers from 0 up in as few bytes each as the largest needs: "u1:", "u2:" or "u4:" and base64."""
    array = np.asarray(values, dtype=np.int64)
    largest = int(array.max(initial=0))
    size = 1 if largest < 2**8 else 2 if largest < 2**16 else 4
    return f"u{size}:{base64.b64encode(array.astype(f'<u{size}').tobytes()).decode()}"


def thousandths(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.int64]:
    """Magnitudes in 1/1000, at most 65.534; what is not a number is 65535, which the page shows as unknown."""
    joined = np.concatenate(parts) if parts else np.zeros(0)
    known = np.nan_to_num(np.abs(joined) * 1000, nan=0.0, posinf=65534).clip(0, 65534).round().astype(np.int64)
    return np.where(np.isnan(joined), 65535, known)
