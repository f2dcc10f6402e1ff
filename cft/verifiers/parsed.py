r"""LaTeX as math-verify reads it, and whether it read all of it.

Its parser drops what it does not know (a prime, \gcd(a,b), the base of 1011_2) and says nothing. Each number, letter and
prime of a text must therefore be found again among the leaves of the parsed tree. Those that are not (the tree may hold a
value that is computed already) are changed, numbers all at once, and must change the tree. A parse costs up to a second:
the common formula needs no further one, and any at most 1 + MAX_TRIALS.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

NO_LIMIT = 0  # seconds: math-verify's own time limits are off
MAX_TRIALS = 4
_GREEK = "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega|pi"
_TOKEN = re.compile(
    rf"\\(?:begin|end)\s*\{{[^{{}}]*\}}|\\(?P<greek>{_GREEK})(?![A-Za-z])|\\[A-Za-z]+|\\."
    r"|(?P<token>[A-Za-z]|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|')"
)
_IN_NAME = re.compile(rf"{_GREEK}|[0-9]+|[a-z]")
_LETTERS = "wvuzyxbk"
_NUMBERS = ("71", "73", "79", "83", "89", "97", "67", "61", "59", "53", "47", "43", "41", "37", "31", "29")


def parsed_by_library(text: str) -> list[Any]:
    """What math-verify makes of a LaTeX text, best reading first."""
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    # LaTeX extraction alone: math-verify's other one hands text to sympy's parse_expr, which evaluates it.
    config: Any = [LatexExtractionConfig()]
    found = parse(f"\\boxed{{{text.strip()}}}", config, parsing_timeout=NO_LIMIT, raise_on_error=True)
    return [value for value in found if not isinstance(value, str)]


@lru_cache(maxsize=1024)  # the same gold answer is read again and again
def unread(text: str) -> str:
    """The first number, letter or prime of a text that the parser passes over, "" where it heeds all of them."""
    from sympy import srepr

    tree = parsed_by_library(text)[0]
    tokens = list(_tokens(text))
    # All of a kind are in doubt where fewer are found: which of them is missing is not known.
    missing = Counter(token for token, _ in tokens) - leaves(tree)
    doubtful = [(token, match) for token, match in tokens if token in missing]
    doubtful = _still_missing(text, doubtful)
    if len(doubtful) > MAX_TRIALS:
        return doubtful[0][0]
    for token, match in doubtful:
        other = _parsed(_replaced(text, [(match, _another(token, text))]))
        if other and srepr(other[0]) == srepr(tree):
            return token
    return ""


def leaves(tree: Any) -> Counter[str]:
    """Numbers and letters of a parsed tree that can have come from nowhere but the text; names in small letters."""
    from sympy import E, I, Integral, Mul, Pow, exp, log, pi, preorder_traversal
    from sympy.core.function import AppliedUndef

    found: Counter[str] = Counter()
    constants = {pi: "pi", E: "e", I: "i"}
    node: Any
    for node in preorder_traversal(tree):
        if getattr(node, "is_Symbol", False):
            found.update(_IN_NAME.findall(str(node.name).lower()))
        elif getattr(node, "is_Float", False):
            found[str(node).rstrip("0").rstrip(".")] += 1
        elif getattr(node, "is_Rational", False):
            parts = [abs(int(node.p)), int(node.q)]
            found.update(str(part) for part in (parts[:1] if parts[1] == 1 else parts) if part != 1 or parts[1] == 1)
        elif node is pi or node is E or node is I:
            found[constants[node]] += 1
        elif isinstance(node, AppliedUndef):
            found.update(_IN_NAME.findall(str(node.func).lower()))
        elif isinstance(node, exp):
            found["e"] += 1
        elif isinstance(node, Integral):
            found["d"] += len(node.limits)
        # What the library puts there itself: the -1 of a quotient or a difference, the half of a root, a logarithm's base.
        if isinstance(node, Pow) and node.exp.is_Rational:
            exponent: Any = node.exp
            found.subtract({"2": int(exponent.q == 2), "1": int(exponent == -1)})
        elif isinstance(node, Mul):
            found["1"] -= sum(factor == -1 for factor in node.args)
        elif isinstance(node, log) and len(node.args) == 2:
            found.subtract({"10": int(node.args[1] == 10), "e": int(node.args[1] == E)})
    return found


def _tokens(text: str) -> Iterator[tuple[str, re.Match[str]]]:
    for match in _TOKEN.finditer(text):
        token = match["greek"] or match["token"]
        if token and token[0] in ".0123456789":
            whole, dot, places = token.partition(".")
            token = (whole.lstrip("0") or "0") + (dot + places if dot else "")
            token = token.rstrip("0").rstrip(".") if dot else token
        if token:
            yield token.lower(), match


def _still_missing(text: str, doubtful: list[tuple[str, re.Match[str]]]) -> list[tuple[str, re.Match[str]]]:
    """Those that are no numbers, or not found with other numbers in their places. A letter may have a meaning of its own
    (E_1 is dropped, w_1 is not), so that others in the place of several say nothing about them."""
    numbers = [tag for tag in _NUMBERS if tag not in text]
    tagged: dict[int, tuple[re.Match[str], str]] = {}
    for token, match in doubtful:
        if token[0].isdigit() and numbers:
            tagged[match.start()] = (match, numbers.pop(0))
    tree = _parsed(_replaced(text, list(tagged.values()))) if tagged else []
    found = leaves(tree[0]) if tree else Counter()
    return [
        (token, match)
        for token, match in doubtful
        if match.start() not in tagged or not found[tagged[match.start()][1]]
    ]


def _replaced(text: str, changes: list[tuple[re.Match[str], str]]) -> str:
    for match, tag in sorted(changes, key=lambda change: -change[0].start()):
        space = " " if text[match.start()] == "\\" else ""
        text = text[: match.start()] + space + tag + space + text[match.end() :]
    return text


def _parsed(text: str) -> list[Any]:
    """Nothing where it is no formula."""
    try:
        return parsed_by_library(text)
    except Exception:  # noqa: BLE001 - whatever model text does to the library
        return []


def _another(token: str, text: str) -> str:
    """Something else of the same kind that is nowhere in the text; nothing for a prime."""
    if token == "'":
        return ""
    if token[0].isdigit():
        return next(str(n) for n in range(7, 999) if str(n) not in text)
    return next((letter for letter in _LETTERS if letter not in text.lower()), "w")
