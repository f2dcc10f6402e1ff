r"""What number a final answer states: plain Python, exact, whatever people write around a number.

Read are thousands separators, currency, a unit, percent, `1.5 million`, `\frac{3}{4}`, `1 1/2`, `1.85 \times 10^{5}`,
`x = 5`, `3:1`. Where the text is found is the business of `cft/verifiers/extract.py`.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction

from cft.verifiers.letters import LATEX_TEXT, SPELLED, ascii_digits, is_product, spelled_number

MAX_ANSWER_CHARS = 512  # a longer final answer is not parsed
MAX_DIGITS = 1000  # a longer run of digits is compared as text only
MAX_EXPONENT = 999  # of 1e3 and the like
# A gold decimal of so many places was rounded by who wrote it down (8/9 as 0.8888888889): it means its surroundings.
ROUNDED_PLACES = 6
ROUNDED_TOLERANCE = Fraction(1, 10_000)  # relative
NOISE_ULPS = 4  # by so much may a double that a program printed (75.00000000000001) be off

_DIGITS = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_UNSIGNED = (
    rf"(?:[0-9]+ [0-9]+/[0-9]+"  # 1 1/2
    rf"|{_DIGITS}(?:\.[0-9]+|\.(?=/))?(?:[eE][-+]?[0-9]{{1,3}}(?![0-9A-Za-z]))?(?:/[0-9]+(?:\.[0-9]+)?)?"
    rf"|(?<![0-9])\.[0-9]+)"
)
_NUMBER = re.compile(rf"(?P<sign>(?:(?<![0-9A-Za-z)\]}}])[-+]\$?)?){_UNSIGNED}")
_LEADING = re.compile(rf"[$€£¥(\[\s]*(?P<number>{_NUMBER.pattern})")
_RATIO = re.compile(r"\s*(?P<above>[0-9]+(?:\.[0-9]+)?)\s*:\s*(?P<below>[0-9]+(?:\.[0-9]+)?)[\s.,;)]*")
# Plain words, %, and simple powers of units may follow a number; operators and further digits may not.
_UNIT = re.compile(
    r"[\s%°$€£¥(]*(?:[A-Za-z][A-Za-z\s.'/()%$-]*(?:(?<=[A-Za-z.)])\s*(?:\^\s*\{?\s*[23²³]\s*\}?)|(?<=[a-z])[23²³])?)?"
    r"[\s.,;:)\]%]*"
)
_RESIDUE = re.compile(r"\s*(?:\\[pb]?mod(?![A-Za-z])|\(\s*mod\b)\s*\{?\s*(?P<modulus>[1-9][0-9]{0,17})\s*[)}]?[\s.]*")
_OPERATOR = re.compile(r"\s*(?:[*^+!=<>×·÷\\_{]|[-/]\s*[0-9(\\])")
# "3 or 4", "3, 4", "3 apples and 4 pears": several numbers, of which none is the answer.
_ANOTHER = re.compile(r"[\sA-Za-z%°$€£¥.)]{0,40}?(?:\b(?:or|and|to)\b|[,;&])\s*[$€£¥(]?[-+]?\.?[0-9]")
# "10 hours 30 minutes": the first number alone is not the answer.
_COMPOUND = re.compile(
    r"\s*(?:years?|months?|weeks?|days?|hours?|hrs?|minutes?|min|feet|foot|ft|yards?|pounds?|lbs?|dollars?|km|kg|m)\b"
    r"[\s.,]*(?:and\s+)?[0-9]+(?:\.[0-9]+)?\s*[A-Za-z]"
)
_FACTORS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_FACTOR = re.compile(rf"\s*(?:(?P<word>{'|'.join(_FACTORS)})s?\b|(?P<percent>%|per ?cent\b))", re.IGNORECASE)

_FRAC = re.compile(r"(?P<whole>[0-9]*)\s*\\[dtc]?frac\s*(?:\{([^{}]*)\}|([0-9]))\s*(?:\{([^{}]*)\}|([0-9]))")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|\\q?quad|~")
_POWER_OF_TEN = re.compile(
    r"(?:(?P<digits>[0-9.]+)\s*(?:\\times|\\cdot|[×·*xX])\s*|(?<![0-9A-Za-z.{}^_/]))"
    r"10\s*\^\s*(?:\{\s*(?P<braced>-?\s?[0-9]{1,3})\s*\}|(?P<bare>-?[0-9]{1,3}))(?![0-9^!{])"
)
_REPEATING = re.compile(
    r"(?P<whole>[0-9]{1,20})\s*\.\s*(?P<start>[0-9]{0,20})\s*"
    r"\\(?:overline|bar|dot)\s*(?:\{\s*(?P<repeated>[0-9]{1,20})\s*\}|(?P<digit>[0-9]))(?![0-9\\])"
)
_DOTTED = re.compile(r"\\dot\s*\{?([0-9])\}?\s*([0-9]{0,18})\s*\\dot\s*\{?([0-9])\}?")  # 0.\dot1 4\dot2
# Every dash that can only be a minus; an en or em dash is one where it can be no range (3–5) and no pause.
_PLAIN_SIGNS = str.maketrans("\u2212\uff0d\ufe63\u00a0\u202f\u2009\u2044\u2215", "---   //")
_MINUS = re.compile(
    r"(?P<before>^|[=≈(\[:])(?P<space>[\s$]*)(?:[\u2010-\u2015]|(?:negative|minus)\b)\s*(?=[0-9.$\\½⅓⅔¼¾])",
    re.IGNORECASE,
)
_SAID_MINUS = re.compile(
    r"(?<![0-9)}\]])(?:^|\s)[$(]?(?:negative|minus)\s+$|(?:^|[=:(]\s*)[\uff0d\u2013]\s*$", re.IGNORECASE
)
_SIGN_APART = re.compile(r"(^|[=≈(\[,:])(\s*[$€£]?)([-+])\s+(?=[0-9.$\\])")
_INEQUALITY = re.compile(r"[<>≤≥≠]|\\(?:le|ge|lt|gt|ne)q?\b|!=")
_WORD = r"(?:[A-Za-z][A-Za-z'’-]*[A-Za-z]|[aAI])"
_WORDS_THEN_NUMBER = re.compile(rf"(?:[\s.,;:'\"()$%]*{_WORD}\b)+[\s.,;:'\"()$%]*(?P<number>{_NUMBER.pattern})")
_FUNCTION = re.compile(r"\b(?:log|ln|exp|sqrt|root|sin|cos|tan|sec|csc|cot|arc\w*|mod|gcd|lcm|not)\b", re.IGNORECASE)
_ORDINALS = r"hal(?:f|ves)|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?"
# Words that make another number of the one beside them, in front of it and behind it.
_CHANGES_BEFORE = re.compile(
    r"\b(?:twice|thrice|double|triple|quadruple|half|third|quarter|times|plus|minus|negative|over|divided|squared?|cubed?|power"
    r"|reciprocal|inverse|opposite|factorial|percent of|product|sum|difference|quotient|ratio)\b",
    re.IGNORECASE,
)
_CHANGES_BEHIND = re.compile(
    r"[\s$*)\]-]*(?:squared|cubed|plus|minus|times|over|divided|multiplied|to the|factorial|choose|mod(?:ulo)?|remainder"
    rf"|(?:{_ORDINALS})|[A-Za-z]\s+[-+]?[0-9])\b",
    re.IGNORECASE,
)
# What may follow a number in front of an explanation: the end, a stop, a unit or another word, the end of bold or a formula.
_FOLLOWS = re.compile(r"[\s%°$€£¥*_]*(?:$|[.,;:!?\"'”’)\]—–](?!\d)|[A-Za-z-]|(?<=\s)\((?![-+0-9\s]*\)))")
_NAMED_VALUE = re.compile(
    r"[\sA-Za-z%°$€£¥.)]{0,40}?(?:\b(?:or|and)\b|[,;&])\s*\$?\s*[A-Za-z]\w?(?:_\{?\w+\}?)?\s*[=<>≤≥]"
)
_COMPARED = re.compile(  # "at least 5" is not 5
    r"\b(?:(?:less|more|fewer|greater|larger|smaller|higher|lower|bigger|longer|shorter|older|younger) than|at (?:least|most)"
    r"|under|over|above|below|between|exceed\w*|up to)\b",
    re.IGNORECASE,
)
_IN_WORDS = re.compile(
    rf"(?P<number>{SPELLED}(?:(?:\s+and\s+|[\s-]+){SPELLED}){{0,12}})(?P<unit>(?:\s+(?!{_ORDINALS})[a-z]{{3,}})?[\s.]*)",
    re.IGNORECASE,
)
_EXPLAINED = re.compile(r"[=≈]|\\approx|(?<=[A-Za-z]):")


@dataclass(frozen=True, slots=True)
class ParsedNumber:
    """A text read as a number: the exact value with its text, or None with the reason.

    factor: what a word or sign behind the number multiplies it by: 1/100 for percent, 10^6 for million, else 1.
    digits: a digit is there, so that "no number at all" is not what the text says.
    open: several numbers or an expression are there, so that no other number of the text is the answer either.
    modulus: of a residue such as 7 (mod 11), which `value` is reduced by; else 0.
    """

    value: Fraction | None
    text: str
    factor: Fraction
    digits: bool
    reason: str
    open: bool = False
    modulus: int = 0

    @property
    def plain_integer(self) -> bool:
        return self.value is not None and self.value.denominator == 1 and self.factor == 1


def tidy(text: str) -> str:
    r"""A LaTeX answer as plain text where that is possible: \text, \frac, thousands, currency, powers of ten, signs."""
    text = text.translate(_PLAIN_SIGNS)
    text = ascii_digits(text) if not text.isascii() else text
    text = text.replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"(?<=[0-9])\\[,!; ](?=[0-9]{3})|(?<=,)\\!\s*(?=[0-9]{3})", "", text)
    text = LATEX_TEXT.sub(r" \1", text)
    text = re.sub(
        r"\\[()\[\]]|(?<![0-9)])\*\*|\*\*(?![0-9(])|__|\\left|\\right|\^\s*\{?\s*\\circ\s*\}?|\\displaystyle", "", text
    )
    text = _LATEX_SPACE.sub(" ", text)
    text = _FRAC.sub(_plain_fraction, text)
    text = _REPEATING.sub(_repeating_fraction, _DOTTED.sub(r"\\overline{\1\2\3}", text)) if "." in text else text
    text = _POWER_OF_TEN.sub(_plain_power, text)
    text = _MINUS.sub(r"\g<before>\g<space>-", text.strip().strip("$").strip())
    return _SIGN_APART.sub(r"\1\2\3", text)


def read_number(text: str, *, whole: bool) -> ParsedNumber:
    """The number that a final answer states.

    whole: nothing but the number, words and a unit may be there (a box); else an explanation may follow it.
    Text such as `2^{3}` or `5!` is found to hold digits, without a value: only computer algebra can tell.
    """
    if len(text) > MAX_ANSWER_CHARS:
        reason = f"the answer has {len(text)} characters, more than {MAX_ANSWER_CHARS}"
        return _none(reason, digits=bool(re.search(r"[0-9]", text)))
    plain = tidy(text)
    if in_words := _IN_WORDS.fullmatch(plain):
        plain = f"{spelled_number(in_words['number'])}{in_words['unit']}"
    exact, sign, near = plain.partition("≈" if "≈" in plain else "\\approx")
    if sign and (stated := read_number(exact, whole=True)).value is not None:
        return (
            stated
            if is_near(near, stated)
            else _none("an approximation that is not near its number", digits=True, open=True)
        )
    if ratio := _RATIO.fullmatch(plain):
        value = as_fraction(f"{ratio['above']}/{ratio['below']}") if "." not in ratio["above"] else None
        return ParsedNumber(value, plain, Fraction(1), True, "" if value is not None else "no plain ratio")
    match, part = _LEADING.match(plain), plain
    if (match is None or _OPERATOR.match(plain, match.end())) and not _INEQUALITY.search(plain):
        # "x = 5", "2 + 3 = 5" and "Total: 5" state the number behind the last sign.
        *before, part = _EXPLAINED.split(plain)
        part = _SIGN_APART.sub(r"\1\2\3", part.strip())
        named = any("," in left or ";" in left for left in before[1:])  # a = 2, b = 3
        match = (_LEADING.match(part) or _only_number(part)) if not named and all(map(_explains, before)) else None
    if match is None:
        return _none("no plain number is in the answer", digits=bool(re.search(r"[0-9]", plain)))
    number, rest, ahead = match.group("number"), part[match.end() :], part[: match.start("number")]
    if "," in number and re.search(r"[(\[][^$€£¥]*$", ahead) and "{,}" not in text and "\\!" not in text:
        return _none("numbers in brackets, which a comma separates", digits=True, open=True)
    if (residue := _RESIDUE.fullmatch(rest)) and number.lstrip("+-").isdecimal():
        modulus = int(residue["modulus"])
        return ParsedNumber(
            (as_fraction(number) or Fraction(0)) % modulus, number, Fraction(1), True, "", modulus=modulus
        )
    if _COMPARED.search(ahead):
        return _none("more or less than a number", digits=True, open=True)
    if _CHANGES_BEFORE.search(ahead) or _CHANGES_BEHIND.match(rest):
        return _none("a word makes another number of it", digits=True, open=True)
    if re.search(r"[(\[]", ahead) and not re.match(r"[\sA-Za-z%°.']*[)\]]", rest) and (not whole or "," in rest):
        return _none("brackets that hold more than the number", digits=True, open=True)
    if not whole and not _FOLLOWS.match(rest):
        return _none("the answer is an expression, not a plain number", digits=True, open=True)
    if _OPERATOR.match(rest) or is_product(rest, text, whole=whole):
        return _none("the answer is an expression, not a plain number", digits=True, open=True)
    if _ANOTHER.match(rest) or _NAMED_VALUE.match(rest) or _COMPOUND.match(rest):
        return _none("several numbers are in the answer", digits=True, open=True)
    if whole and not _UNIT.fullmatch(rest):
        return _none("more than a number and its unit is in the answer", digits=True)
    value = as_fraction(number)
    reason = "a division by zero, or too many digits" if value is None else ""
    return ParsedNumber(value, number, _factor(rest), True, reason)


def same_number(a: ParsedNumber, b: ParsedNumber) -> bool:
    """Equal exact values. Where one side alone has a percent sign or a word such as million, the number as it is
    may be meant as well: 50% equals 50 and 0.5 alike."""
    if a.value is None or b.value is None or (a.modulus and b.modulus and a.modulus != b.modulus):
        return False
    if a.factor == b.factor:
        return a.value == b.value
    bare = 1 in (a.factor, b.factor) and a.value == b.value
    return bare or a.value * a.factor == b.value * b.factor


def agrees(read: ParsedNumber, gold: ParsedNumber) -> bool:
    """The number is the gold one, or as near as decimals allow: a gold decimal of ROUNDED_PLACES means all within
    ROUNDED_TOLERANCE of it, and an answer of as many (0.666667 for 2/3) may be off by one in its last place. A whole
    number needs no rounding: 17.999999 is not 18. All the digits of a double (75.00000000000001) are a program's noise."""
    if same_number(read, gold):
        return True
    if read.value is None or gold.value is None:
        return False
    if places(read) == places(gold):
        return False
    off = abs(read.value - gold.value)
    if _is_noise(read.text, gold.value):
        return True
    if places(gold) >= ROUNDED_PLACES and off <= ROUNDED_TOLERANCE * abs(gold.value):
        return True
    if (gold.value * gold.factor).denominator == 1 or gold.value.denominator == 1:
        return False
    return places(read) >= ROUNDED_PLACES and off <= Fraction(1, 10 ** places(read))


def is_near(text: str, exact: ParsedNumber) -> bool:
    """Whether what follows "approximately" is the number to its last place, or no number that could be compared."""
    near = read_number(text.strip(" =$"), whole=True)
    if near.value is None or exact.value is None:
        return True
    return abs(near.value - exact.value) <= Fraction(1, 10 ** places(near))


def _is_noise(text: str, exact: Fraction) -> bool:
    """Whether a decimal is the full print of a double that differs from an exact value by rounding alone."""
    text = text.replace(",", "").lstrip("+")
    if not re.fullmatch(r"-?[0-9]{1,15}\.[0-9]{1,20}", text) or len(re.sub(r"[^0-9]", "", text).lstrip("0")) < 15:
        return False
    near = float(text)
    return repr(near) == text and abs(Fraction(near) - exact) <= NOISE_ULPS * Fraction(math.ulp(near))


def changes_number(text: str) -> bool:
    """Whether a word behind a number makes another one of it: 3 squared, 2 thirds."""
    return _CHANGES_BEHIND.match(text) is not None


def last_number(text: str) -> str | None:
    """The last number in a text, as it is there; with a minus where a word says so (minus 5)."""
    text = text.replace("\u2212", "-")
    last = deque(_NUMBER.finditer(text), maxlen=1)
    if not last:
        return None
    number, before = last[0].group(), text[max(0, last[0].start() - 40) : last[0].start()]
    return f"-{number}" if number[0] not in "+-" and _SAID_MINUS.search(before) else number


def as_fraction(number: str) -> Fraction | None:
    """Exact value of `1,234.5`, `-3/4`, `1 1/2`, `2e3`; None when not defined (x/0) or beyond the caps."""
    number = number.replace(",", "").replace("$", "").lstrip("+")
    sign = -1 if number.startswith("-") else 1
    number = number.lstrip("-")
    if any(len(run) > MAX_DIGITS for run in re.findall(r"[0-9]+", number)):
        return None
    mixed, _, fraction = number.rpartition(" ")
    above, _, below = fraction.partition("/")
    exponent = re.search(r"[eE]([-+]?[0-9]+)$", above)
    if exponent and abs(int(exponent.group(1))) > MAX_EXPONENT:
        return None
    divisor = Fraction(below) if below else Fraction(1)
    if divisor == 0:
        return None
    return sign * (Fraction(mixed or 0) + Fraction(above) / divisor)


def normalized_text(text: str, *, case_sensitive: bool) -> str:
    """Space collapsed, wrapping signs and a trailing full stop dropped."""
    text = tidy(text) if len(text) <= MAX_ANSWER_CHARS else text  # tidying takes quadratic time
    text = " ".join(text.split()).rstrip(".").strip()
    return text if case_sensitive else text.casefold()


def canonical(answer: str) -> Hashable:
    """What two equal answers share: the exact number where it is one, else the normalized text."""
    value = read_number(answer, whole=True).value
    return normalized_text(answer[:MAX_ANSWER_CHARS], case_sensitive=False) if value is None else value


def _plain_fraction(match: re.Match[str]) -> str:
    above, below = match.group(2) or match.group(3) or "", match.group(4) or match.group(5) or ""
    if not (above.strip().isdecimal() and below.strip().isdecimal()):
        return match.group()
    fraction = f"{above.strip()}/{below.strip()}"
    return f"{match.group('whole')} {fraction}" if match.group("whole") else fraction


def _repeating_fraction(match: re.Match[str]) -> str:
    r"""`0.1\overline{6}` -> `15/90`."""
    start, repeated = match["whole"] + match["start"], match["repeated"] or match["digit"]
    below = (10 ** len(repeated) - 1) * 10 ** len(match["start"])
    return f"{int(start + repeated) - int(start)}/{below}"


def _plain_power(match: re.Match[str]) -> str:
    exponent = (match["braced"] or match["bare"]).replace(" ", "")
    return f"{match['digits'] or 1}e{exponent}"


def places(read: ParsedNumber) -> int:
    """Decimal places of a plain decimal number, else 0."""
    match = re.fullmatch(r"[-+$]*[0-9,]*\.([0-9]+)", read.text)
    return len(match.group(1)) if match else 0


def _none(reason: str, *, digits: bool, open: bool = False) -> ParsedNumber:
    return ParsedNumber(None, "", Fraction(1), digits, reason, open)


def _factor(rest: str) -> Fraction:
    match = _FACTOR.match(rest)
    if match is None:
        return Fraction(1)
    return Fraction(1, 100) if match["percent"] else Fraction(_FACTORS[match["word"].lower()])


def _only_number(text: str) -> re.Match[str] | None:
    """`about 12`: the one number of a text that has nothing but words and punctuation before it."""
    if _FUNCTION.search(text) or len(_NUMBER.findall(text)) != 1:
        return None
    return _WORDS_THEN_NUMBER.match(text)


def _explains(left: str) -> bool:
    """What may be left of "=" so that the number behind it is the answer: a name, words, arithmetic; no equation
    such as x^2 + 50 = 0."""
    if re.fullmatch(r"\s*[A-Za-z](?:_?\{?\w{1,3}\}?)?(?:\([A-Za-z]\))?\s*", left):
        return True
    left = re.sub(r"\\(?:times|cdot|div|approx)(?![A-Za-z])", "", left)
    return not re.search(r"[\\_{}|]", left) and not re.search(r"(?<![A-Za-z'’])[B-HJ-Zb-z](?![A-Za-z'’])", left)
