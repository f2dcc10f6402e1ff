"""Numbers as people write them: exact values, rounding, words, units, commas, degrees."""

from __future__ import annotations

from fractions import Fraction

import pytest

from cft.verifiers.latex import one_spelling, readable, structure_of
from cft.verifiers.numbers import agrees, canonical, read_number
from cft.verifiers.units import is_unit


def test_ballots_are_shared_by_equal_products_only() -> None:
    assert len({canonical(text) for text in ("6xy", "6ab", "6", "9")}) == 4
    assert canonical("6 \\text{ cm}") == canonical("6")


@pytest.mark.parametrize("above", [*range(0, 40, 7), 10**6])
@pytest.mark.parametrize("places", [6, 9, 12])
def test_rounding_is_for_numbers_that_need_it(above: int, places: int) -> None:
    """Against exact fractions: one unit in the last place off is right for a seventh, never for a whole number."""
    whole = read_number(str(above), whole=True)
    assert not agrees(read_number(f"{above}.{'1':0>{places}}", whole=True), whole)
    seventh = Fraction(7 * above + 1, 7)
    rounded = f"{round(seventh, places).numerator * 10**places // round(seventh, places).denominator:0{places + 1}d}"
    read = read_number(f"{rounded[:-places]}.{rounded[-places:]}", whole=True)
    assert agrees(read, read_number(f"{seventh.numerator}/7", whole=True))


WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def test_numbers_in_words_are_read_as_they_are_counted() -> None:
    for value, word in enumerate(WORDS):
        assert read_number(word, whole=True).value == value
        assert read_number(f"twenty {word}" if 0 < value < 10 else f"\\text{{{word}}}", whole=True).value == (
            20 + value if 0 < value < 10 else value
        )
    assert read_number("two thousand three hundred and five", whole=True).value == 2305
    assert read_number("one third", whole=True).value is None


@pytest.mark.parametrize("unit", ["cm", "metres", "mph", "feet", "Hz", "m", "L"])
def test_units_are_known(unit: str) -> None:
    assert is_unit(unit)


@pytest.mark.parametrize("letters", ["xy", "ab", "abc", "x", "A", "M", "bh"])
def test_products_are_no_units(letters: str) -> None:
    assert not is_unit(letters)


def test_a_comma_separates_thousands_outside_brackets_alone() -> None:
    assert structure_of("(2,251,252)").parts == ("2", "251", "252")
    assert structure_of(readable("(1{,}234, 5)")).parts == ("1234", "5")
    assert structure_of("1,234").kind == "one"
    assert structure_of("0,100").parts == ("0", "100")
    assert one_spelling("(1,200)") == one_spelling("( 1, 200 )") != one_spelling("(1200)")


def test_plus_minus_is_not_the_beginning_of_another_command() -> None:
    assert structure_of("7 \\pmod{11}").kind == "one"
    assert structure_of("1\\pm 2").parts == ("1+ 2", "1- 2")


def test_degrees_count_in_trigonometric_functions_alone() -> None:
    assert one_spelling("30^\\circ") == one_spelling("30")
    assert one_spelling("\\cos 20^\\circ") != one_spelling("\\cos 20")
    assert one_spelling("30'") != one_spelling("30^{\\circ}")
