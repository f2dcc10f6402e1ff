r"""Computer algebra on model text: what it may see, and math-verify's verdict. It runs where a deadline can end it.

too_hard        plain Python: length, nesting, runs of digits, factorials, towers of exponents, large sums
equal_by_algebra  math-verify with its own time limits off: they rely on signals; the pool's deadline replaces them.
                  Its "no" is believed only if the values differ as well (`cft/verifiers/values.py`)
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Literal

from cft.verifiers.latex import balanced
from cft.verifiers.numbers import MAX_ANSWER_CHARS, MAX_DIGITS, ROUNDED_PLACES
from cft.verifiers.parsed import NO_LIMIT, parsed_by_library, unread
from cft.verifiers.values import NoValueError, same_values, value

Decided = Literal["right", "wrong", "undecided"]

MAX_FUNCTIONS = 5  # in one another
MAX_NESTING = 12  # deeper, the reader of LaTeX alone takes seconds
_ONE_EXPONENT = r"(?:\\[A-Za-z]+|[0-9]+|[A-Za-z]|[{(\[][^{}()]*)"
SIGNIFICANT = 6  # digits from which a decimal means the irrational number that it was rounded from
_DECIMAL = re.compile(r"[-+.]")
_PLAIN = re.compile(r"-?[0-9]{0,20}\.[0-9]{1,40}")
_FACTOR = r"(?:\([^()]*\)|[0-9.]+|[A-Za-z]|\\pi)"
_DIVIDED = re.compile(rf"({_FACTOR})\s*/\s*({_FACTOR})(\s*[A-Za-z({{\\])")  # a/b c: (a/b) c or a/(b c)
_CONSTANT = re.compile(r"\+\s*\{?[Cc]\}?\s*$")
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
    if (
        deepest >= MAX_FUNCTIONS
        and len(re.findall(r"\\(?:sin|cos|tan|ln|log|exp|arc[a-z]+)(?![a-z])", expression)) >= MAX_FUNCTIONS
    ):
        return "functions of functions"
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
    if re.search(r"\\lim(?![a-z])", bare):
        return "a limit"  # compared as text alone: math-verify spends seconds, and nothing could confirm its "yes"
    if re.search(r"[\0\ud800-\udfff]", expression):
        return "characters that are no text"
    return ""


def equal_by_algebra(gold: str, prediction: str) -> tuple[Decided, str]:
    """(verdict, reason) on two LaTeX texts. math-verify's `verify(gold, target)` is not symmetric: the gold one is first.

    A "yes" is believed only if the values agree as well, a "no" only if they do not, and either only if every number and
    letter of both texts makes a difference to what was parsed.
    """
    decision, reason = _equal(gold, prediction)
    if decision == "wrong" and any(_DIVIDED.search(side) for side in (gold, prediction)):
        sides = [_DIVIDED.sub(r"\\frac{\1}{\2}\3", side) for side in (gold, prediction)]
        if _equal(*sides)[0] == "right":
            return "undecided", "a/b c may be read in two ways"
    return decision, reason


def _equal(gold: str, prediction: str) -> tuple[Decided, str]:
    parsed = []
    for text in (gold, prediction):
        if not balanced(text):
            return "undecided", "a formula with an unmatched brace"
        if re.search(r"[0-9]\s+[0-9]", text):
            return "undecided", "numbers side by side"  # math-verify adds them
        try:
            found = parsed_by_library(text)
        except Exception as error:  # noqa: BLE001 - whatever model text does to the library, the answer is "undecided"
            return "undecided", f"math-verify could not read {text[:60]!r}: {type(error).__name__}"
        parsed.append(found)
    if not parsed[0] or not parsed[1]:
        return "undecided", "math-verify could not read " + ("the answer" if parsed[0] else "the gold answer")
    try:
        decision, reason = _compared(gold, prediction, *parsed)
        if decision != "undecided":
            for text in (gold, prediction):
                if token := unread(text):
                    return "undecided", f"math-verify passes over {token!r} in {text[:60]!r}"
            if _cases(gold, prediction):
                return "undecided", "a letter in both cases, which math-verify does not distinguish"
    except Exception as error:  # noqa: BLE001 - as above
        return "undecided", f"math-verify failed: {type(error).__name__}"
    return decision, reason


def _compared(gold: str, prediction: str, golds: list[Any], predictions: list[Any]) -> tuple[Decided, str]:
    from math_verify import verify
    from sympy import Derivative, Eq, Expr, Integral, Product, Sum

    expected: Any = golds[0]
    given: Any = predictions[0]
    if any(side.has(Derivative, Integral, Product, Sum) for side in (expected, given) if hasattr(side, "has")):
        # sympy takes dy/dx for 0, and may spend minutes on a series: the same tree, or a sum that can be added up.
        if expected == given:
            return "right", "the same formula"
        both = isinstance(expected, Expr) and isinstance(given, Expr)
        agree = same_values(expected, given) if both else None
        if agree is None:
            return "undecided", "derivatives, integrals and series are compared by their form and values alone"
        return ("right" if agree else "wrong"), "compared by values"
    if (same := _same_equation(expected, given)) is not None:
        return ("right" if same else "wrong"), "compared as equations"
    if (near := _rounded(gold, prediction, expected, given)) is not None:
        return ("right" if near else "wrong"), "a decimal compared to its printed digits"
    if isinstance(expected, Expr) and isinstance(given, Expr):
        if (exact := _same_rationals(expected, given)) is not None:
            return ("right" if exact else "wrong"), "compared as exact fractions"
        if (agree := same_values(expected, given)) is True:
            return "right", "equal at every point tried"
        if agree is False:
            return "wrong", "other values"
    if isinstance(expected, Eq) != isinstance(given, Eq):
        equation: Any
        equation, other = (expected, given) if isinstance(expected, Eq) else (given, expected)
        if not (equation.lhs.is_Symbol or equation.lhs.is_Function):
            return "undecided", "an equation, and an expression that may be its right side"
        expected, given = equation.rhs, other
    if not verify(gold=golds, target=predictions, timeout_seconds=NO_LIMIT, raise_on_error=True):
        return "wrong", "compared by math-verify"
    return (
        ("right", "compared by math-verify")
        if _confirmed(expected, given)
        else ("undecided", "equal for math-verify alone")
    )


def _confirmed(gold: Any, prediction: Any) -> bool:
    """A second look at math-verify's "yes", whose tolerance is absolute: the same tree, or parts of the same values."""
    from sympy import Expr, default_sort_key, expand

    if gold == prediction:
        return True
    if isinstance(gold, Expr) and isinstance(prediction, Expr):
        if (exact := _same_rationals(gold, prediction)) is not None:
            return exact
        return same_values(gold, prediction) is True or expand(gold - prediction) == 0
    if type(gold) is not type(prediction) or len(gold.args) != len(prediction.args):
        return False
    pairs = zip(*(sorted(side.args, key=default_sort_key) for side in (gold, prediction)), strict=True)
    return bool(gold.args) and all(_confirmed(*pair) for pair in pairs)


def _same_rationals(gold: Any, prediction: Any) -> bool | None:
    """Whether two rational numbers are equal, None where one side is none."""
    sides = [side.doit() if side.is_number and side.is_rational else side for side in (gold, prediction)]
    return sides[0] == sides[1] if all(side.is_Rational for side in sides) else None


def _cases(gold: str, prediction: str) -> bool:
    """Whether a letter occurs in both cases, a constant of integration (+ C) aside."""
    letters = {
        letter
        for side in (gold, prediction)
        for letter in re.findall(r"(?<![\\A-Za-z])[A-Za-z]", _CONSTANT.sub("", side))
    }
    return any(letter.swapcase() in letters for letter in letters)


def _rounded(gold: str, prediction: str, *values: Any) -> bool | None:
    """Whether a decimal of SIGNIFICANT digits or more is the other side, an irrational constant, to its last place."""
    from sympy import Expr

    texts = [text.replace(" ", "") for text in (gold, prediction)]
    if _PLAIN.fullmatch(texts[0]) and len(texts[0].partition(".")[2]) < ROUNDED_PLACES:
        return None  # a gold decimal of fewer places is what was requested
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
    if not ours.free_symbols:
        return None  # 1 = 2 and 1 = 3 are no equations of one unknown
    ratio = cancel(ours / theirs)
    return bool(ratio.is_number and ratio.is_finite and not ratio.is_zero) or (ours - theirs).equals(0) is True


def _stacked_powers(bare: str) -> bool:
    """((9^9)^9)^9 and the like: a closing bracket between two exponents, twice or more."""
    return len(re.findall(r"[)}\]]+(?:\^|\*\*)", bare)) >= 3 and bool(re.search(r"[0-9](?:\^|\*\*)[{(]*[0-9]", bare))
