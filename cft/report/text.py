"""Makes model text safe to show: nothing in it can move a cursor, color a terminal or reorder a line."""

from __future__ import annotations

import re

# C0 and C1 controls but for newline, lone surrogates, and marks that reorder or join text (bidi overrides, BOM).
_CONTROLS = re.compile(r"[\0-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def printable(text: str) -> str:
    """The text with each control character as a visible character; newlines stay."""
    return _CONTROLS.sub(_stand_in, text)


def one_line(text: str, *, limit: int) -> str:
    """Printable, without line breaks, shortened to `limit` characters."""
    line = printable(text).replace("\n", "⏎").replace("\u2028", "⏎").replace("\u2029", "⏎")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _stand_in(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code == 0x09:
        return "    "
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"
