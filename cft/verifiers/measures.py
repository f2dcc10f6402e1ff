"""Measures as people write them: 2 hours 30 minutes, 5 km/h, l^2/8 square feet. `quantities.py` knows the units."""

from __future__ import annotations

import re
from fractions import Fraction

from cft.verifiers.algebra import Decided
from cft.verifiers.latex import assigned
from cft.verifiers.letters import is_word
from cft.verifiers.numbers import ParsedNumber, agrees, changes_number, read_number, tidy
from cft.verifiers.units import quantity

Unit = tuple[str, Fraction]

_PART = re.compile(r"\s*(?:and\s+)?(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[A-Za-z]+)\.?,?")
_BEHIND = re.compile(
    r"(.*?[0-9})\s])\s*((?:(?:square|cubic|sq|cu)\.?\s+)?[A-Za-z]{2,}(?:\s+(?:squared|cubed))?|[A-Za-z]+/[A-Za-z]+)\s*$",
    re.DOTALL,
)
_NOUN = re.compile(r"(.*[0-9})])\s*(?<!\\)\b([A-Za-z]{3,})\s*", re.DOTALL)
_LAST_LETTER = re.compile(r"(?<=[0-9})\s])(\s*)(?<![A-Za-z\\])([A-Za-z])\s*$")


def unit_of(text: str) -> Unit | None:
    """(dimension, size) of a unit or of one unit per another, None where it is not known."""
    if known := quantity(text):
        return known
    above, sign, below = re.sub(r"\bper\b", "/", text.strip().strip(".")).partition("/")
    one, two = (quantity(above), quantity(below)) if sign else (None, None)
    return (f"{one[0]} per {two[0]}", one[1] / two[1]) if one and two else None


def compound(text: str) -> Unit | None:
    """(dimension, amount in its smallest unit) of two parts or more of one dimension, larger units first; else None."""
    plain, at, parts = tidy(text).strip().rstrip("."), 0, []
    while match := _PART.match(plain, at):
        unit = quantity(match["unit"])
        if unit is None or (parts and (unit[0] != parts[0][0] or unit[1] >= parts[-1][2])):
            return None
        parts.append((unit[0], Fraction(match["number"]) * unit[1], unit[1]))
        at = match.end()
    if len(parts) < 2 or at < len(plain):
        return None
    return parts[0][0], sum((amount for _, amount, _ in parts), Fraction(0))


def split_unit(text: str) -> tuple[str, Unit | None]:
    """(formula, known unit behind it)."""
    match = _BEHIND.match(text)
    unit = unit_of(match.group(2)) if match else None
    return (match.group(1), unit) if match and unit else (text, None)


def without_unit(text: str) -> str:
    """A formula without a known unit behind it: l^2/8 square feet."""
    return split_unit(text)[0]


def without_noun(text: str) -> str:
    """A formula without what it counts (5\\sqrt{3} units): one word behind it, which does not change its value."""
    match = _NOUN.fullmatch(text)
    noun = match and is_word(match.group(2)) and not changes_number(match.group(2))
    return match.group(1) if match and noun else text


def in_one_unit(gold: str, answer: str) -> tuple[str, str] | None:
    """Two formulas without their units, scaled to a common one; None where the units do not convert."""
    (one, first), (two, second) = split_unit(gold), split_unit(answer)
    if (first is None) != (second is None):  # one letter is a unit only where the other side has one too
        (one, first), (two, second) = (
            side if side[1] else _letter_unit(side[0]) for side in ((one, first), (two, second))
        )
    if first is None or second is None or first == second:
        return _one_letter(one, two) if first is second is None else (one, two)
    if first[0] != second[0]:
        return None
    ratio = second[1] / first[1]
    return one, f"\\frac{{{ratio.numerator}}}{{{ratio.denominator}}} \\cdot ({two})"


def _letter_unit(text: str) -> tuple[str, Unit | None]:
    match = re.fullmatch(r"(.*[0-9})\s])\s*([mghsl])\s*", text, re.DOTALL)
    return (match.group(1), quantity(match.group(2))) if match else (text, None)


def _one_letter(gold: str, answer: str) -> tuple[str, str]:
    """Braces around a last letter: without a unit on the other side it is a variable, but math-verify drops 4t's t."""
    return _LAST_LETTER.sub(r"\1{\2}", gold), _LAST_LETTER.sub(r"\1{\2}", answer)


def compare_numbers(gold: str, answer: str) -> tuple[Decided, str] | None:
    """The verdict where both are plain numbers, None where one is not."""
    (gold_name, gold_rest), (name, rest) = assigned(gold), assigned(answer)
    if gold_name and name and gold_name != name:
        return None
    if decided := _compounds(gold_rest, rest):
        return decided
    read, expected = read_number(rest, whole=True), read_number(gold_rest, whole=True)
    if read.value is None or expected.value is None:
        return None
    units = _unit(rest, read), _unit(gold_rest, expected)
    ours, theirs = unit_of(units[0]), unit_of(units[1])
    if ours and theirs and ours != theirs:
        same = ours[0] == theirs[0] and read.value * ours[1] == expected.value * theirs[1]
        return ("right" if same else "wrong"), f"compared as quantities ({ours[0]} and {theirs[0]})"
    return ("right" if agrees(read, expected) else "wrong"), "compared as numbers"


def _compounds(gold: str, answer: str) -> tuple[Decided, str] | None:
    """2 hours 30 minutes and 150 minutes; None where neither has two units."""
    one, two = compound(gold), compound(answer)
    if one is None and two is None:
        return None
    expected, given = one or _amount(gold), two or _amount(answer)
    if expected is None or given is None:
        return "undecided", "several units on one side"
    return ("right" if expected == given else "wrong"), f"compared as quantities ({given[0]} and {expected[0]})"


def _amount(text: str) -> Unit | None:
    read = read_number(text, whole=True)
    unit = unit_of(_unit(text, read)) if read.value is not None else None
    return (unit[0], read.value * unit[1]) if unit and read.value is not None else None


def _unit(text: str, read: ParsedNumber) -> str:
    """What follows the number, or the currency sign before it."""
    return "$" if re.match(r"\s*[-+]?\s*\\\$", text) else tidy(text).rpartition(read.text)[2]
