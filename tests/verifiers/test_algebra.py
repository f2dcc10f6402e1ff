"""Computer algebra and what is checked of it: values at points, what a parser passes over, units that add up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cft.verifiers.algebra import equal_by_algebra
from cft.verifiers.measures import compound
from cft.verifiers.parsed import parsed_by_library, unread
from cft.verifiers.values import NoValueError, same_values, value

INTEGERS = st.integers(-9, 9)


@settings(max_examples=3, deadline=None)
@given(INTEGERS, INTEGERS, INTEGERS, INTEGERS)
def test_products_of_complex_numbers_against_python(a: int, b: int, c: int, d: int) -> None:
    product = complex(a, b) * complex(c, d)
    gold, wrong = (f"{int(product.real) + off}+{int(product.imag)}i" for off in (0, 1))
    answer = f"({a}+{b}i)({c}+{d}i)"
    assert equal_by_algebra(gold, answer)[0] == "right"
    assert equal_by_algebra(wrong, answer)[0] == "wrong"


def test_values_that_agree_to_thirty_digits_are_not_equal() -> None:
    import sympy

    near = sympy.exp(sympy.pi * sympy.sqrt(163))  # an integer and 744 to 7.5e-13
    assert same_values(near, sympy.Integer(640320**3 + 744)) is False
    assert same_values(sympy.Integer(2) ** 40, sympy.Integer(2**40 + 1)) is None  # rational: sympy is exact there


def test_signs_are_tried_where_both_sides_are_real() -> None:
    from sympy import Abs, Symbol, log, sqrt

    x, y = Symbol("x", real=True), Symbol("y", real=True)
    assert same_values(Abs(x), x) is False
    assert same_values(sqrt(x**2), x) is False
    assert same_values(log(x * y), log(x) + log(y)) is True
    assert same_values(log(x * y), log(x) * log(y)) is False


def test_a_tower_of_powers_is_never_evaluated() -> None:
    from sympy import Add, Integer, Pow, Symbol, exp

    nine = Integer(9)
    tower = Pow(nine, Pow(nine, Pow(nine, nine, evaluate=False), evaluate=False), evaluate=False)
    x = Symbol("x", real=True)
    for hostile in (
        tower,
        Pow(x, tower, evaluate=False),
        exp(exp(exp(nine))),
        Pow(x, 10**30),
        Add(*(x**i for i in range(900))),
    ):
        with pytest.raises(NoValueError):  # evaluated, it would take for ever
            value(hostile, {"x": 1.5})


@given(st.integers(0, 99), st.integers(0, 59))
def test_hours_and_minutes_are_minutes(hours: int, minutes: int) -> None:
    found = compound(f"{hours} hours {minutes} min")
    assert found is not None
    assert found[0] == "time"
    assert found[1] == (hours * 60 + minutes) * 60
    assert compound(f"{minutes} min {hours} hours") is None  # larger units come first


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("f'(x)", "'"),
        ("\\gcd(a,b)", "a"),
        ("1011_2", "2"),
        ("x^{2}+\\frac{1}{3}y", ""),
        ("\\sqrt[3]{x}", ""),
        ("\\frac{\\theta}{2}", ""),
        ("2\\pi r", ""),
        ("e^{i x}", ""),
        ("\\sum_{k=1}^{n} k^{2}", ""),
    ],
)
def test_what_a_parser_passes_over_is_found(text: str, token: str) -> None:
    found = unread(text)
    assert (found in text and found != "") if token else found == ""


@pytest.mark.parametrize("text", ["\\sum_{k", "1}^{10} k", "\\frac{1}{2", "x}", "}{"])
def test_a_formula_with_unmatched_braces_never_reaches_algebra(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cft.verifiers.algebra.parsed_by_library", lambda text: pytest.fail(f"parsed {text}"))
    assert equal_by_algebra(text, text + "+1")[0] == "undecided"


@settings(max_examples=6, deadline=None)
@given(st.integers(2, 9), st.integers(20, 60), st.sampled_from(["", "\\pi", "\\sqrt{2}"]))
def test_small_numbers_differ_however_small_they_are(base: int, power: int, constant: str) -> None:
    gold, other = (f"\\frac{{{constant or 1}}}{{{base}^{{{n}}}}}" for n in (power, power + 1))
    assert equal_by_algebra(gold, gold.replace("\\frac", "1\\cdot \\frac"))[0] == "right"
    assert equal_by_algebra(gold, other)[0] == "wrong"


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("x^{2}+\\frac{41}{7}y", 1),
        ("\\omega_{n}^{2}e^{-\\zeta t}", 1),
        ("x^{-1}+x^{1/2}", 2),
        ("\\operatorname{lcm}(a,b)", 6),
    ],
)
def test_the_common_formula_is_parsed_once(text: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    monkeypatch.setattr(
        "cft.verifiers.parsed.parsed_by_library", lambda text: parsed.append(text) or parsed_by_library(text)
    )
    unread.cache_clear()
    unread(text)
    assert 1 <= len(parsed) <= most


def test_a_letter_that_is_dropped_takes_its_index_with_it() -> None:
    # E_1 is passed over; with another letter in its place it would not be.
    assert unread("\\frac{1}{3}E_{1}+\\frac{2}{3}E_{2}") != ""
