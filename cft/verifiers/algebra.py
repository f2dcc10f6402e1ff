r"""Computer algebra on model text: what it may see, and math-verify's verdict. It runs where a deadline can end it.

too_hard        plain Python: length, nesting, runs of digits, factorials, towers of exponents, large sums
equal_by_algebra  math-verify with its own time limits off: they rely on signals; the pool's deadline replaces them.
                  Its "no" is believed only if the values differ as well (`cft/verifiers/values.py`)
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Literal

from cft.verifiers.numbers import MAX_ANSWER_CHARS, MAX_DIGITS, ROUNDED_PLACES
from cft.verifiers.values import NoValueError, same_values, value

Decided = Literal["right", "wrong", "undecided"]

MAX_NESTING = 32
NO_LIMIT = 0  # seconds: math-verify's own time limits are off
_ONE_EXPONENT = r"(?:\\[A-Za-z]+|[0-9]+|[A-Za-z]|[{(\[][^{}()]*)"
SIGNIFICANT = 6  # digits from which a decimal stands for the irrational number that it was rounded from
_DECIMAL = re.compile(r"[-+.]")
_PLAIN = re.compile(r"-?[0-9]{0,20}\.[0-9]{1,40}")
_FACTOR = r"(?:\([^()]*\)|[0-9.]+|[A-Za-z]|\\pi)"
_DIVIDED = re.compile(rf"({_FACTOR})\s*/\s*({_FACTOR})(\s*[A-Za-z({{\\])")  # a/b c: (a/b) c or a/(b c)
_BOUNDED = r"\\(?:sum|prod|int|bigcup|coprod)"


def too_hard(expression: str) -> str:
    """Why computer algebra must not see an expression, "" if it may."""
    if len(expression) > MAX_ANSWER_CHARS:
        return f"{len(expression)} characters, more than {MAX_ANSWER_CHARS}"
    depth = deepest = 0
    for char in expression:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        return f"brackets {deepest} deep, more than {MAX_NESTING}"
    # Spaces, font commands and brackets do not make a power small: what follows is read without them.
    bare = re.sub(r"\s|\\(?:left|right|,|;|!|:|text|mathrm|mathbf|displaystyle)(?![A-Za-z])", "", expression)
    if re.search(r"[0-9]{5,}[)}\]]*!|![)}\]]*!", bare) or re.search(r"\^[^!]{0,40}!", bare):
        return "a large factorial"
    if re.search(
        r"(?:\^|\*\*)[{}()\[\]]*[-+]?[0-9]{5,}|(?:\^|\*\*)[{(\[]*[-+]?[0-9.]+(?:e|E|\\times|\\cdot|\*)[0-9]", bare
    ):
        return "a large exponent"
    if re.search(rf"(?:\^|\*\*){_ONE_EXPONENT}[)}}\]]*(?:\^|\*\*|!)", bare) or _stacked_powers(bare):
        return "a tower of exponents"
    if re.search(r"[)}\]](?:\^|\*\*)[{(\[]*[0-9]{3,}", bare):
        return "a large power of a sum"
    if re.search(r"\\[dtc]?binom[^A-Za-z]*?(?:\^|[0-9]{6})", bare):
        return "a large binomial"
    if re.search(rf"{_BOUNDED}[^^]{{0,40}}\^\{{?[0-9]{{3,}}", bare) or len(re.findall(_BOUNDED, bare)) > 2:
        return "a long sum or product"
    if re.search(r"\\(?:pmod|bmod|mod)(?![A-Za-z])", bare) and "^" in bare:
        return "a power modulo"
    if re.search(rf"[0-9]{{{MAX_DIGITS},}}", bare):
        return f"more than {MAX_DIGITS} digits in a row"
    if re.search(r"[\0\ud800-\udfff]", expression):
        return "characters that are no text"
    return ""


def equal_by_algebra(gold: str, prediction: str) -> tuple[Decided, str]:
    """Both as LaTeX. `verify(gold, target)` is not symmetric, hence keyword arguments only."""
    decision, reason = _equal(gold, prediction)
    if decision == "wrong" and any(_DIVIDED.search(side) for side in (gold, prediction)):
        sides = [_DIVIDED.sub(r"\\frac{\1}{\2}\3", side) for side in (gold, prediction)]
        if _equal(*sides)[0] == "right":
            return "undecided", "a/b c may be read in two ways"
    return decision, reason


def _equal(gold: str, prediction: str) -> tuple[Decided, str]:
    import logging

    from math_verify import verify
    from sympy import Eq

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    parsed = []
    for text in (gold, prediction):
        try:
            found = _parsed(text)
        except Exception as error:  # noqa: BLE001 - whatever model text does to the library, the answer is "undecided"
            return "undecided", f"math-verify could not read {text[:60]!r}: {type(error).__name__}"
        parsed.append([value for value in found if not isinstance(value, str)])
    if not parsed[0] or not parsed[1]:
        return "undecided", "math-verify could not read " + ("the answer" if parsed[0] else "the gold answer")
    try:
        expected, given = parsed[0][0], parsed[1][0]
        if (same := _same_equation(expected, given)) is not None:
            return ("right" if same else "wrong"), "compared as equations"
        if (near := _rounded(gold, prediction, expected, given)) is not None:
            return ("right" if near else "wrong"), "a decimal compared to its printed digits"
        same = verify(gold=parsed[0], target=parsed[1], timeout_seconds=NO_LIMIT, raise_on_error=True)
        if same and isinstance(expected, Eq) != isinstance(given, Eq):
            equation = expected if isinstance(expected, Eq) else given
            if not (equation.lhs.is_Symbol or equation.lhs.is_Function):
                return "undecided", "an equation, and an expression that is its right side"
        if not same and _same_values(expected, given):
            return "right", "equal at every point tried"
    except Exception as error:  # noqa: BLE001 - as above
        return "undecided", f"math-verify failed: {type(error).__name__}"
    return ("right" if same else "wrong"), "compared by math-verify"


def _parsed(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    # LaTeX extraction alone: math-verify's other one hands text to sympy's parse_expr, which evaluates it.
    config: Any = [LatexExtractionConfig()]
    return parse(f"\\boxed{{{text.strip()}}}", config, parsing_timeout=NO_LIMIT, raise_on_error=True)


def _same_values(gold: Any, prediction: Any) -> bool:
    from sympy import Expr

    return isinstance(gold, Expr) and isinstance(prediction, Expr) and same_values(gold, prediction) is True


def _rounded(gold: str, prediction: str, *values: Any) -> bool | None:
    """Whether a decimal of SIGNIFICANT digits or more is the other side, an irrational constant, to its last place."""
    from sympy import Expr

    texts = [text.replace(" ", "") for text in (gold, prediction)]
    if _PLAIN.fullmatch(texts[0]) and len(texts[0].partition(".")[2]) < ROUNDED_PLACES:
        return None  # a gold decimal of fewer places is what was asked for
    decimal = [
        len(_DECIMAL.sub("", text).lstrip("0")) >= SIGNIFICANT and bool(_PLAIN.fullmatch(text)) for text in texts
    ]
    if decimal[0] == decimal[1]:
        return None
    printed, exact = texts[decimal.index(True)], values[decimal.index(False)]
    if not isinstance(exact, Expr) or exact.free_symbols:
        return None
    try:
        found, real = value(exact, {})
    except NoValueError:
        return None
    last_place = Fraction(1, 10 ** len(printed.partition(".")[2]))
    return real and abs(Fraction(str(found.real)) - Fraction(printed)) <= last_place


def _same_equation(gold: Any, prediction: Any) -> bool | None:
    """Whether two equations say the same, None where one is no equation: left minus right side, up to a factor.

    math-verify solves them instead, and takes x^2 + 50 = 1 for x^2 + 50 = 0.
    """
    from sympy import Eq, cancel, fraction, together

    if not (isinstance(gold, Eq) and isinstance(prediction, Eq)):
        return None
    sides: list[Any] = [prediction, gold]
    ours, theirs = (fraction(together(side.lhs - side.rhs))[0] for side in sides)
    if ours.free_symbols != theirs.free_symbols:
        return False
    ratio = cancel(ours / theirs)
    return bool(ratio.is_number and ratio.is_finite and not ratio.is_zero) or (ours - theirs).equals(0) is True


def _stacked_powers(bare: str) -> bool:
    """((9^9)^9)^9 and the like: a closing bracket between two exponents, twice or more."""
    return len(re.findall(r"[)}\]]+(?:\^|\*\*)", bare)) >= 3 and bool(re.search(r"[0-9](?:\^|\*\*)[{(]*[0-9]", bare))
