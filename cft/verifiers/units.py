"""Units of measure in answers: 500 cm is 5 m and not 500 m. Only units that are named on both sides are compared."""

from __future__ import annotations

import re
from fractions import Fraction

_LENGTH = {"mm": 1, "cm": 10, "m": 1000, "km": 10**6, "in": Fraction(254, 10), "ft": Fraction(3048, 10)}
_LENGTH |= {"yd": Fraction(9144, 10), "mi": 1609344}
_NAMES = {name: ("length", Fraction(size)) for name, size in _LENGTH.items()}
_NAMES |= {"mg": ("mass", Fraction(1, 1000)), "g": ("mass", Fraction(1)), "kg": ("mass", Fraction(1000))}
_NAMES |= {"lb": ("weight", Fraction(16)), "oz": ("weight", Fraction(1))}
_NAMES |= {"s": ("time", Fraction(1)), "min": ("time", Fraction(60)), "h": ("time", Fraction(3600))}
_NAMES |= {"day": ("time", Fraction(86400)), "week": ("time", Fraction(604800))}
_NAMES |= {"cent": ("money", Fraction(1)), "dollar": ("money", Fraction(100))}
_NAMES |= {"ml": ("volume", Fraction(1)), "l": ("volume", Fraction(1000))}
_SPELLED = {
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
    "kilometer": "km",
    "inch": "in",
    "foot": "ft",
    "feet": "ft",
}
_SPELLED |= {"millimetre": "mm", "centimetre": "cm", "metre": "m", "kilometre": "km", "yard": "yd", "mile": "mi"}
_SPELLED |= {"milligram": "mg", "gram": "g", "kilogram": "kg", "pound": "lb", "ounce": "oz", "second": "s", "sec": "s"}
_SPELLED |= {"minute": "min", "hour": "h", "hr": "h", "milliliter": "ml", "liter": "l", "litre": "l", "$": "dollar"}
_SPELLED |= {"inche": "in", "lbs": "lb", "yds": "yd", "¢": "cent", "mins": "min", "hrs": "h", "secs": "s"}
# Names whose size is no matter here: behind a number they are no product of letters.
_OTHERS = "dm nm ms kw kwh hz khz mhz ghz pa kpa mol rad deg am pm sq cu pt qt gal tsp tbsp st nd rd th usd eur gbp kj"
_OTHERS += " kn ha yr yrs wk wks mo pcs pc cal kcal bpm rpm mph kph kmh psi db ev mev kev ma kv mv cl dl"
_NAMELESS = frozenset(_OTHERS.split())
_UNIT = re.compile(r"(?P<word>[A-Za-z]+|[$¢])(?:\s*\^?\s*\{?\s*(?P<power>[23²³])\s*\}?)?")
_POWERS = {"2": 2, "²": 2, "square": 2, "sq": 2, "squared": 2, "3": 3, "³": 3, "cubic": 3, "cu": 3, "cubed": 3}


def is_unit(word: str) -> bool:
    """Whether a word names a unit of measure: cm, metres, mph, not xy. One letter is a unit in its own case alone."""
    if len(word) == 1:
        return word in _NAMES or word == "L"
    word = word.lower()
    return any(name in _NAMES or name in _SPELLED or name in _NAMELESS for name in (word, word.removesuffix("s")))


def quantity(unit: str) -> tuple[str, Fraction] | None:
    """(dimension, size in its smallest unit) of a unit as it follows a number, None where it is not known."""
    unit = re.sub(r"\s*\^\s*", "^", unit)
    words = re.sub(r"[\s.,;()]+", " ", unit).strip().split(" ")
    power = 1
    if len(words) == 2:
        word = words[0].lower() if words[0].lower() in _POWERS else words[1].lower()
        if word not in _POWERS:
            return None
        power = _POWERS[word]
        words = [w for w in words if w.lower() != word]
    match = _UNIT.fullmatch(words[0]) if len(words) == 1 else None
    if match is None:
        return None
    word = match["word"] if len(match["word"]) == 1 else match["word"].lower()
    power = _POWERS[match["power"]] if match["power"] else power
    name = next((n for n in (word, word.removesuffix("s")) if n in _NAMES or n in _SPELLED), None)
    if name is None:
        return None
    dimension, size = _NAMES[_SPELLED.get(name, name)]
    return (f"{dimension}^{power}", size**power) if power > 1 else (dimension, size)
