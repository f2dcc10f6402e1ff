r"""Letters beside a number: words and units, or a product of variables; and numbers in words and other digits."""

from __future__ import annotations

import re
import unicodedata

from cft.verifiers.units import is_unit, quantity

LATEX_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|textit|operatorname)\s*\{([^{}]*)\}")
# A word behind a number is its unit; products of letters are none: 6ab, 6abc (letters in the order of the alphabet), 6xyz.
_LINKS = frozenset(["a", "of", "in", "is", "at", "by", "on", "to", "an", "as", "it", "he", "we", "us", "so", "per"])
_SPACED_UNITS = frozenset(["V", "W", "N", "J"])  # 10 V, not 10V
_SHORT_WORDS = frozenset(
    ["act", "ant", "ants", "art", "bit", "bits", "box", "boy", "cent", "cost", "city", "dot", "most"]
)
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = {word: i for i, word in enumerate((_ONES + " eighteen nineteen").split())}
_SMALL |= {word: 10 * i for i, word in enumerate(_TENS, 2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
SPELLED = rf"(?:{'|'.join(sorted(_SMALL | _SCALES, key=len, reverse=True))})"
_VULGAR = re.compile(r"\s*([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])")


def is_product(rest: str, text: str, *, whole: bool) -> bool:
    """Whether the letters behind a number multiply it (6xy) and are no unit. text: the answer as it was written, in which
    \\text{...} says that its letters are words. An explanation that may follow (not whole) is not looked at."""
    if not whole and not re.match(r"[A-Za-z]|\s*[A-Za-z]{1,2}(?:\s*\^.*)?[\s.]*$", rest):
        return False
    words = re.findall(r"[A-Za-z]+", rest)
    if not whole:
        words = words[:1]
    if not words:
        return False
    if re.fullmatch(r"\s*[ap]\.?\s?m\.?\s*", rest, re.IGNORECASE) or re.match(r"\s*(?:per ?cent\b|°)", rest):
        return False
    said = {word for inside in LATEX_TEXT.findall(text) for word in re.findall("[A-Za-z]+", inside)}
    if re.search(r"\\circ(?![a-z])|\\degree|°", text):
        said |= {"C", "F", "K"}
    if re.match(r"\s", rest):
        said |= _SPACED_UNITS
    elif len(words[0]) <= 3 and rest[0].isalpha() and not is_unit(words[0]) and words[0] not in said:
        return True
    unknown = [word for word in words if word not in said and not is_word(word)]
    if unknown and (len(unknown) == len(words) or not _LINKS.issuperset(unknown)):
        return True
    # 4s^2 is no unit, 4 m^2 and 4 m/s^2 are.
    power = re.fullmatch(r"\s*([A-Za-z])\s*\^.*", rest)
    return power is not None and power[1] not in said and (quantity(power[1]) or ("",))[0] != "length"


def is_word(word: str) -> bool:
    """Whether letters are a word or a unit, and no product of variables."""
    if is_unit(word) or word.lower() in _SHORT_WORDS:
        return True
    if len(word) < 3 or not re.search(r"[aeiouyAEIOUY]", word) or (word.isupper() and len(word) < 5):
        return False
    return any(a >= b for a, b in zip(word.lower(), word.lower()[1:], strict=False))


def spelled_number(words: str) -> int:
    """`two hundred and twenty-three` -> 223; words that make no number (`two three`) are added up, as nobody means them."""
    total = group = 0
    for word in re.findall(r"[a-z]+", words.lower()):
        if word in _SMALL:
            group += _SMALL[word]
        elif word == "hundred":
            group = (group or 1) * 100
        elif word != "and":
            total, group = total + (group or 1) * _SCALES[word], 0
    return total + group


def ascii_digits(text: str) -> str:
    """Digits of any script as 0 to 9, and one-character fractions as 1/2."""
    text = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in text)
    return _VULGAR.sub(_vulgar_fraction, text)


def _vulgar_fraction(match: re.Match[str]) -> str:
    return " " + unicodedata.normalize("NFKC", match[1]).replace("\u2044", "/")
