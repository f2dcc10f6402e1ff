r"""Values of sympy expressions at a few points, in plain arithmetic: the last look before "wrong".

math-verify says "no" wherever sympy finds no proof: \sqrt{x^3} and x\sqrt{x}, \ln(xy) and \ln x + \ln y. Two expressions
are the same here if they agree at positive points and wherever else both are real. Nothing is simplified or expanded, an
expression has at most MAX_NODES nodes and no value on the way exceeds LARGEST, so that no tower of powers is ever evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_NODES = 2000  # visited, those of a sum once for each of its terms
MAX_LOG = 138  # of a power, which is about LARGEST
MAX_TERMS = 100  # of a sum or a product
DIGITS = 140  # of every value
LARGEST = 10**60  # of every value on the way, so that 80 digits are left
SAME = 1e-33  # relative: no coincidence such as e^(pi sqrt 163), an integer to 30 digits, passes for equal
_POSITIVE = ((0.3, 1.7, 0.61), (1.37, 0.43, 2.9), (2.83, 3.61, 1.13), (0.71, 0.19, 5.3), (5.17, 1.21, 0.37))
_SIGNED = ((-0.7, -1.3, -2.9), (-2.3, 0.83, 1.9), (1.9, -0.57, 3.1))


class NoValueError(Exception):
    """The expression has no value that could be had cheaply."""


def same_values(gold: Any, answer: Any) -> bool | None:
    """Whether two sympy expressions agree at every point tried; None where that cannot be told."""
    from sympy import Abs

    names = sorted({symbol.name for side in (gold, answer) for symbol in side.free_symbols} - _CONSTANTS.keys() - {"i"})
    index = {"j", "k"} & set(names)
    if not names and gold.is_rational and answer.is_rational:
        return None  # sympy is exact there
    bars = [bool(side.atoms(Abs)) for side in (gold, answer)]
    compared = 0
    for points in (_POSITIVE, _SIGNED) if names else (_POSITIVE[:1],):
        for point in points:
            at = {name: point[i % 3] + 0.29 * (i // 3) for i, name in enumerate(names)}
            if index:
                at["i"] = 0.47
            try:
                (one, one_real), (two, two_real) = value(gold, at), value(answer, at)
            except NoValueError:
                continue
            if points is _SIGNED and not (one_real and two_real) and bars[0] == bars[1]:
                continue  # square roots and logarithms of negative numbers: which branch is meant is not said
            compared += 1
            if abs(one - two) > SAME * max(abs(one), abs(two)):
                return False
    return True if compared >= (3 if names else 1) else None


def value(expression: Any, at: Mapping[str, float]) -> tuple[Any, bool]:
    """(value, whether every value on the way is real); NoValueError where there is none."""
    import mpmath

    with mpmath.workdps(DIGITS):
        walk = _Walk(at)
        return mpmath.mpc(walk.value(expression)), walk.real


_CONSTANTS: dict[str, str] = {"pi": "pi", "e": "e"}
_TRIGONOMETRY = frozenset(("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh"))
_FUNCTIONS = _TRIGONOMETRY | {"exp"}


class _Walk:
    def __init__(self, at: Mapping[str, float]) -> None:
        self.at, self.real, self.nodes = at, True, 0

    def value(self, node: Any) -> Any:
        import mpmath

        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise NoValueError(f"more than {MAX_NODES} nodes")
        try:
            found = self._node(node)
        except (ValueError, ZeroDivisionError, OverflowError, TypeError) as error:
            raise NoValueError(str(error)) from error
        if not mpmath.isfinite(found) or abs(found) > LARGEST:
            raise NoValueError("too large, or not defined")
        if isinstance(found, mpmath.mpc):
            if abs(found.imag) <= abs(found.real) * 1e-40:
                return found.real
            self.real = False
        return found

    def _node(self, node: Any) -> Any:
        import mpmath
        import sympy

        if node.is_Symbol:
            return self._symbol(node.name)
        if node.is_Float:
            return self._ratio(sympy.Rational(str(node)))  # 0.1 is meant, not the nearest binary fraction
        if node.is_Rational:
            return self._ratio(node)
        if node in (sympy.pi, sympy.E, sympy.I):
            return {sympy.pi: mpmath.mp.pi + 0, sympy.E: mpmath.mp.e + 0, sympy.I: mpmath.mpc(0, 1)}[node]
        if isinstance(node, sympy.Sum | sympy.Product):
            return self._series(node, mpmath.fsum if isinstance(node, sympy.Sum) else mpmath.fprod)
        arguments = [self.value(argument) for argument in node.args]
        if node.is_Add:
            return mpmath.fsum(arguments)
        if node.is_Mul:
            product = mpmath.mpf(1)
            for argument in arguments:
                product *= argument
            return product
        if node.is_Pow:
            return self._power(*arguments)
        name = type(node).__name__
        if name == "exp" and abs(arguments[0]) > MAX_LOG:
            raise NoValueError("a large power")
        if name in _FUNCTIONS and len(arguments) == 1:
            return getattr(mpmath, name)(arguments[0])
        if name == "log":
            return mpmath.log(arguments[0]) / (mpmath.log(arguments[1]) if len(arguments) > 1 else 1)
        if name == "Abs":
            return abs(arguments[0])
        if name in ("factorial", "binomial") and all(a == mpmath.floor(a.real) and 0 <= a <= 200 for a in arguments):
            return getattr(mpmath, name)(*arguments)
        if name == "UnevaluatedExpr":
            return arguments[0]
        raise NoValueError(f"{name} is not evaluated")

    def _series(self, node: Any, total: Any) -> Any:
        """A sum or product over whole numbers; NoValueError where its bounds are no numbers."""
        if len(node.limits) != 1 or not all(bound.is_Integer for bound in node.limits[0][1:]):
            raise NoValueError("bounds that are no numbers")
        index, low, high = node.limits[0]
        if high - low >= MAX_TERMS:
            raise NoValueError(f"more than {MAX_TERMS} terms")
        outer = self.at
        terms = []
        for k in range(int(low), int(high) + 1):
            self.at = {**outer, index.name: k}
            terms.append(self.value(node.function))
        self.at = outer
        return total(terms)

    def _symbol(self, name: str) -> Any:
        import mpmath

        if name in self.at:
            return mpmath.mpf(self.at[name])
        return mpmath.mpc(0, 1) if name == "i" else getattr(mpmath.mp, _CONSTANTS[name]) + 0

    def _ratio(self, number: Any) -> Any:
        import mpmath

        if abs(int(number.p)) > LARGEST * int(number.q):
            raise NoValueError("a large number")
        return mpmath.mpf(int(number.p)) / int(number.q)  # small is no danger: every place of it counts

    def _power(self, base: Any, exponent: Any) -> Any:
        import mpmath

        if base == 0:
            raise NoValueError("a power of zero")
        if abs(exponent) > LARGEST or abs(exponent * mpmath.log(base)) > MAX_LOG:
            raise NoValueError("a large power")
        return mpmath.power(base, exponent)
