r"""Answers rewritten: what people type without LaTeX in the usual spelling, and a text as computer algebra is given it."""

from __future__ import annotations

import re

from cft.verifiers.latex import readable
from cft.verifiers.measures import without_unit
from cft.verifiers.numbers import read_number

_LABEL = re.compile(r"\b[Qq]uadrant\s+(?=[IV]+\b)|^\s*(?:[Oo]ption|[Cc]hoice)\s+(?=\(?[A-H]\)?\s*\.?$)")
# A number in front of a bracket multiplies it; math-verify adds them (3(4) is 7 there, as 3 1/2 is 3.5).
_TIMES = re.compile(
    r"(?:(?<![_^A-Za-z0-9.])(?P<braced>\{[0-9.]+\})|(?<![_^0-9.])(?P<bare>[0-9.]+)|(?P<bracket>(?<![A-Za-z])\([^()]*\)))"
    r"\s*(?=\(|\[[^,\[\]]*\]|\\\{|\\binom)|(?P<alone>(?<![A-Za-z])\([0-9.]+\))\s*(?=[0-9])"
)
_ORDINAL = re.compile(r"(?<=[0-9])\s*\^?\s*\{?\s*(?:th|st|nd|rd)\b\s*\}?")
_EXPONENT = re.compile(r"(?<![A-Za-z0-9.])([0-9]+(?:\.[0-9]+)?)[eE]([-+]?[0-9]{1,3})(?![0-9.A-Za-z^!])")
_SPOKEN = {"over": "/", "divided by": "/", "plus": "+", "minus": "-", "times": "\\cdot ", "multiplied by": "\\cdot "}
_SPOKEN |= {"squared": "^2", "cubed": "^3", "twice": "2\\cdot "}
_IN_WORDS = re.compile(rf"\b(?:{'|'.join(_SPOKEN)})\b")
_SPELT = re.compile(r"(?<![\\A-Za-z])(pi|theta|alpha|beta|lambda|infinity|sin|cos|tan|ln|log)(?![A-Za-z])")


def usual(text: str) -> str:
    """An answer as `readable` gives it, with `2*pi`, `1.5 x 10^3` and `7^{th}` in the usual spelling."""
    text = re.sub(r"(?<=[0-9])\s*[xX*]\s*(?=10\s*\^)", r" \\times ", text)
    if re.fullmatch(r"[-0-9.\s]+", _IN_WORDS.sub("", text)):  # 3 over 4
        text = _IN_WORDS.sub(lambda match: _SPOKEN[match.group()], text)
    text = readable(_as_commands(text))
    text = _ORDINAL.sub("", text)
    text = re.sub(r"\\mathbb\s*R(?![A-Za-z])", "R", _LABEL.sub("", text))
    return re.sub(r"\\overline\s*\{\s*([A-Z]\s*[A-Z])\s*\}", r"\1", text)


def _as_commands(text: str) -> str:
    if re.search(r"[A-Za-z]{3,}\s+[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+", "", text)):
        return text  # a sentence
    text = re.sub(r"(?<![*\\])\*(?!\*)", r"\\cdot ", text)
    return _SPELT.sub(lambda match: "\\infty " if match[1] == "infinity" else f"\\{match[1]} ", text)


def for_algebra(text: str) -> str:
    """LaTeX again, with plain numbers as exact fractions (math-verify takes 1e5 for a product)."""
    read = read_number(text, whole=True)
    if re.fullmatch(r"-?[0-9]*\.[0-9]{5,}", text.strip()):
        return text.strip()  # rounded, perhaps from something irrational: algebra compares the digits
    if read.value is not None:
        value = read.value * read.factor
        sign = "-" if value < 0 else ""
        above = f"{sign}{abs(value.numerator)}"
        return above if value.denominator == 1 else f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    text = _TIMES.sub(r"\g<0>\\cdot ", _EXPONENT.sub(r"\1 \\cdot 10^{\2}", without_unit(text)))
    text = text.replace("\\endmatrix", "\\end{pmatrix}").replace("\\matrix", "\\begin{pmatrix}")
    return re.sub(r"\s+", " ", text.replace("\\endrow", "\\\\ ").replace("\\'", "'")).strip().rstrip(".,;")
