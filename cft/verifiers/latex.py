r"""LaTeX answers as text: one spelling for what looks alike, and the parts of a list, a tuple, a matrix, a range.

`\dfrac12` and `\frac{1}{2}`, `\left( 1 , 2 \right)` and `(1,2)`, `x \geq 3` and `x ≥ 3` are the same answer before any
algebra. Everything here is plain Python on at most MAX_CHARS characters; nothing is evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cft.verifiers.letters import ascii_digits
from cft.verifiers.units import is_unit

MAX_CHARS = 4096  # a longer text is compared as it is

_SIGNS = {"\u2212": "-", "\u2013": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "×": "\\times ", "·": "\\cdot "}
_SIGNS |= {"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∞": "\\infty ", "π": "\\pi ", "±": "\\pm ", "∓": "\\mp "}
_SIGNS |= {
    "∪": "\\cup ",
    "∩": "\\cap ",
    "∈": "\\in ",
    "∅": "\\emptyset ",
    "²": "^2",
    "³": "^3",
    "°": "^\\circ ",
    "÷": "/",
    "\uff0d": "-",
    "\ufe63": "-",
    "\u2044": "/",
    "\u2215": "/",
    "≈": "\\approx ",
    "≃": "\\approx ",
    "⩾": "\\ge ",
    "⩽": "\\le ",
    "≧": "\\ge ",
    "≦": "\\le ",
    "′": "'",
    "″": "''",
}
_SIGNS |= {sign: f"^{power}" for power, sign in enumerate("⁴⁵⁶⁷⁸⁹", 4)}
_SIGNS |= {sign: f"_{i}" for i, sign in enumerate("₀₁₂₃₄₅₆₇₈₉")}
_SIGNS |= {"½": "\\frac12", "¼": "\\frac14", "¾": "\\frac34", "θ": "\\theta ", "λ": "\\lambda ", "α": "\\alpha "}
_UNICODE_ROOT = re.compile(
    r"(?P<root>[√∛∜])\s*(?:\((?P<inside>[^()]*)\)|\{(?P<braced>[^{}]*)\}|(?P<bare>[0-9]+|[A-Za-z]))"
)
_ROOTS = {"√": "", "∛": "[3]", "∜": "[4]"}
_ASCII_RELATION = re.compile(r"(?P<sign>[<>!])=(?!=)|=(?P<turned>[<>])(?!=)")
_RELATIONS = {"<": "\\le ", ">": "\\ge ", "!": "\\ne "}
_TRANSLATION = str.maketrans(_SIGNS)
_DROPPED = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|boldsymbol|rm|bf|it|hspace\s*\{[^{}]*\})(?![A-Za-z])"
    r"|\\[,;:!> ]|\\q?quad(?![A-Za-z])|~|\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\(?:degree|\$)|\$|\\[()\[\]]"
    r"|\\(?:small|large|rule\{[^{}]*\}\{[^{}]*\})(?![A-Za-z])"
)
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_DEGREE = r"(?:\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?|\\degree(?![A-Za-z]))"
_DEGREES = re.compile(rf"(?P<angle>(?<![0-9.])[0-9]+(?:\.[0-9]+)?|(?<![A-Za-z\\])[A-Za-z]|\\[a-z]+)\s*{_DEGREE}")
# What occurs only in texts that algebra may see in any case: no powers, no factorials, no commands.
_HARMLESS = re.compile(r"[^\^!*\\²³]*")
_ROOT = re.compile(r"(\\sqrt\s*\[[^\[\]{}]*\])\s*([0-9A-Za-z])")  # \sqrt[3]4
_BRACED_THOUSANDS = re.compile(r"(?<!\\)\{[1-9][0-9]{0,2}(?:,[0-9]{3})+\}")  # \sqrt{1,234}, no set
_NEGATIVE_POWER = re.compile(r"\^\s*(-\s*(?:[0-9]{1,3}|[A-Za-z]))(?!\s*[0-9^!*])")  # x^-1
# A product of letters behind a number, at the end: math-verify takes some (ab, bc) for units, which it drops.
_LETTERS = re.compile(r"(?<=[0-9}\s])(?P<letters>[A-Za-z][A-Za-z]|[A-Za-z](?:\s+[A-Za-z])+)\s*$")
_FONTS = r"text(?:bf|rm|it|sf|tt|normal)?|math(?:rm|bf|bb|cal|it|sf)|mbox|operatorname\*?|vec|overrightarrow|pmb|bm"
_TEXT = re.compile(rf"\\(?:{_FONTS})\s*\{{([^{{}}]*)\}}")
_SPACED_DIGITS = re.compile(
    r"\\math(?:bf|rm|it)\s*\{\s*([0-9](?:\s+[0-9])+)\s*\}"
)  # \mathbf{5 0 8}, as scanned papers have it
_SYNONYMS = {
    "dfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "leq": "le",
    "leqslant": "le",
    "geq": "ge",
    "geqslant": "ge",
}
_SYNONYMS |= {
    "neq": "ne",
    "lt": "<",
    "gt": ">",
    "infin": "infty",
    "to": "rightarrow",
    "varnothing": "emptyset",
    "land": "wedge",
}
_SYNONYMS |= {"dots": "ldots", "cdots": "ldots", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]", "mid": "|"}
_SYNONYMS |= {
    "vert": "|",
    "lvert": "|",
    "rvert": "|",
    "ast": "*",
    "dbinom": "binom",
    "tbinom": "binom",
    "arcsin": "asin",
}
_SYNONYMS |= {"arccos": "acos", "arctan": "atan", "lor": "vee", "prime": "'", "colon": ":"}
_PRIMES = re.compile(r"\^\s*\{?\s*('(?:\s*')*)\s*\}?")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_MATRIX = re.compile(r"\\begin\s*\{(?:[pb]|small)?matrix\*?\}|\\begin\s*\{array\}\s*\{[^{}]*\}")
_MATRIX_END = re.compile(r"\\end\s*\{(?:(?:[pb]|small)?matrix\*?|array)\}")
_BARE_ARGUMENTS = re.compile(r"\\(frac|binom)\s*(\{[^{}]*\}|[0-9A-Za-z])\s*(\{[^{}]*\}|[0-9A-Za-z])")
_OPEN, _CLOSE = "([{", ")]}"


def one_spelling(text: str) -> str:
    """A text in which only what means something differs; "" where nothing is left. No LaTeX that could be parsed."""
    if len(text) > MAX_CHARS:
        return " ".join(text.split())
    thousands = _thousands(text := readable(text))
    text = re.sub(r"\\{|\\lbrace", "«", text)
    text = re.sub(r"\\}|\\rbrace", "»", text)
    text = _without_space(text)
    for _ in range(2):
        text = _BARE_ARGUMENTS.sub(_braced, text)
    text = re.sub(r"(\^|_|\\sqrt)([0-9A-Za-z])", r"\1{\2}", text)
    text = re.sub(r"(?<![0-9])\.(?=[0-9])", "0.", _without_space(text))
    text = re.sub("[, ]", "", text) if thousands else text
    text = text.replace("+\\infty", "\\infty").replace("\\cdot", "\\times").replace("\\times", "*")
    return text.rstrip(".,;:").lstrip(":")


def readable(text: str) -> str:
    """Unicode signs as commands, synonyms as one, layout and font commands dropped, matrices under one name."""
    if not text.isascii():
        text = (ascii_digits(text) if _HARMLESS.fullmatch(text) else text).translate(_TRANSLATION)
        text = _UNICODE_ROOT.sub(_root, text)
    if "=" in text:  # a factorial may come before "=": 3!=6
        text = _ASCII_RELATION.sub(_relation, text)
    # What says that it is a separator of thousands is dropped; a plain comma may separate anything.
    text = re.sub(r"(?<=[0-9])(?:\{,\}|,\s*\\!|\\[,!; ])\s*(?=[0-9]{3}(?![0-9]))", "", text).replace("{,}", ",")
    text = _BRACED_THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    text = text.replace("\\\\", " \\endrow ")  # a row of a matrix ends; not to be taken for a command's backslash
    if "\\" in text or "'" in text:
        text = _ROOT.sub(r"\1{\2}", _with_degrees(text))
    text = _NEGATIVE_POWER.sub(r"^{\1}", _DROPPED.sub(" ", text))
    text = _SPACED_DIGITS.sub(lambda match: "".join(match[1].split()), text)
    for _ in range(3):  # fonts may be nested
        text = _TEXT.sub(r" \1 ", text)
    text = _COMMAND.sub(_synonym, text)
    text = _PRIMES.sub(lambda match: "".join(match[1].split()), text)
    text = _MATRIX.sub(r"\\matrix ", text)
    text = _MATRIX_END.sub(r" \\endmatrix ", text)
    if (letters := _LETTERS.search(text)) and re.search(r"[0-9}]\s*$", text[: letters.start()]):
        text = text[: letters.start()] + _product(letters["letters"])
    return text.strip()


@dataclass(frozen=True, slots=True)
class Structure:
    """An answer taken apart once.

    kind: "list" (no brackets: 1, 2), "either" (1 or 2; plus or minus), "tuple", "set", "range" (an interval or an
    inequality of one variable; "(1, 2)" is a tuple), "matrix" (rows of parts), "one" (nothing to take apart).
    ends: the brackets of a tuple or range. parts: as LaTeX.
    """

    kind: Literal["list", "either", "tuple", "set", "range", "matrix", "one"]
    parts: tuple[str, ...]
    ends: str = ""
    columns: int = 0


def structure_of(text: str) -> Structure:
    """How an answer is made. text: as `readable` gives it."""
    text = text.strip().rstrip(".;").strip()
    if len(text) > MAX_CHARS:
        return Structure("one", (text,))
    if text.startswith("\\matrix") and text.endswith("\\endmatrix") and text.count("\\matrix") == 1:
        rows = [
            r.split("&")
            for r in text[len("\\matrix") : -len("\\endmatrix")].strip().removesuffix("\\endrow").split("\\endrow")
        ]
        return Structure("matrix", tuple(cell.strip() for row in rows for cell in row), columns=len(rows[0]))
    inside = _bracketed(text)
    if inside and inside.startswith("\\matrix"):
        return structure_of(inside)
    if len(parts := _split(text, r"\bor\b|\band\b|\\vee(?![A-Za-z])")) > 1:
        return Structure(
            "either", tuple(inner for part in parts for inner in _split(part.strip(" ,;"), r"[,;]") if inner)
        )
    if len(parts := _split(text, r"[,;]")) > 1:
        return Structure("list", parts) if all(parts) else Structure("one", (text,))
    if len(halves := re.split(r"\\pm(?![A-Za-z])", text)) == 2 and "\\mp" not in text:
        return Structure("either", ("+".join(halves).lstrip("+ "), "-".join(halves)))
    if inside is not None:
        opened, closed = text[0] if text[0] != "\\" else "{", text[-1]
        parts = _split(inside, r"[,;]", thousands=False)
        if opened == "{":
            return Structure("set", parts if inside.strip() else ())
        if len(parts) == 2 and opened + closed != "()":
            return Structure("range", parts, ends=opened + closed)
        if len(parts) > 1:
            return Structure("tuple", parts, ends=opened + closed)
        if opened + closed == "()":
            return structure_of(inside) if _split(inside, r"[-+*/]")[0] != inside else Structure("one", (text,))
    return _inequality(text) or Structure("one", (text,))


def assigned(text: str) -> tuple[str, str]:
    """`x = 5` -> ("x", "5"), `f(x) = 5` -> ("f(x)", "5"), `x \\in S` -> ("x", "S"); ("", text) where nothing is."""
    match = re.match(
        r"\s*((?:[A-Za-z]|\\[a-z]+)(?:_(?:\{\w+\}|\w))?'*(?:\([A-Za-z](?:,[A-Za-z])*\))?|\([A-Za-z](?:,\s*[A-Za-z])+\))\s*(?:=|\\in(?![a-z]))\s*(?=\S)",
        text,
    )
    if match is None or len(_split(text[match.end() :], "=")) > 1:
        return "", text
    return re.sub(r"\s", "", match.group(1)), text[match.end() :].strip()


def _inequality(text: str) -> Structure | None:
    """`a < x \\le b` and `x > a` as ranges of one variable."""
    pieces = re.split(r"(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z]))", text)
    names = [bool(re.fullmatch(r"[A-Za-z]|\\(?:theta|alpha|lambda|phi)", piece.strip())) for piece in pieces[::2]]
    if len(pieces) not in (3, 5) or sum(names) != 1:
        return None
    at = names.index(True)
    if len(pieces) == 5:
        low, first, _, second, high = pieces
        downward = first in (">", "\\ge")
        if at != 1 or downward != (second in (">", "\\ge")):
            return None
        if downward:
            low, first, second, high = high, second, first, low
        ends = ("[" if "e" in first else "(") + ("]" if "e" in second else ")")
        return Structure("range", (low.strip(), high.strip()), ends=ends)
    left, sign, right = pieces
    bound, above = (right, sign in (">", "\\ge")) if at == 0 else (left, sign in ("<", "\\le"))
    closed = "e" in sign
    if above:
        return Structure("range", (bound.strip(), "\\infty"), ends=("[" if closed else "(") + ")")
    return Structure("range", ("-\\infty", bound.strip()), ends="(" + ("]" if closed else ")"))


def _split(text: str, pattern: str, *, thousands: bool = True) -> tuple[str, ...]:
    """Parts between matches that are in no bracket and in no matrix. A comma of thousands splits nothing, where such
    a comma may occur: (1,200) are two numbers."""
    parts, start, depth = [], 0, 0
    for match in re.finditer(rf"(?P<brace>\\[{{}}]|[()\[\]{{}}]|\\matrix|\\endmatrix)|(?P<here>{pattern})", text):
        if brace := match["brace"]:
            depth += 1 if brace[-1] in _OPEN or brace == "\\matrix" else -1
        elif depth <= 0 and not (thousands and match["here"] == "," and _separates_thousands(text, match.start())):
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return (*parts, text[start:].strip())


def _separates_thousands(text: str, at: int) -> bool:
    """1,234: three digits behind, one to three before, in a text that has no other kind of comma next to it."""
    return bool(re.match(r",[0-9]{3}(?![0-9])", text[at : at + 5])) and bool(
        re.search(r"(?:^|[^0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})*$", text[max(0, at - 24) : at])
    )


def _thousands(text: str) -> bool:
    return (
        re.fullmatch(r"[^0-9(\[{]*[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?:\.[0-9]+)?[^0-9]*", text)
        is not None
    )


def _product(letters: str) -> str:
    joined = re.sub(r"\s+", "", letters)
    return letters if is_unit(joined) else "*".join(joined) if len(joined) == 2 else joined


def _without_space(text: str) -> str:
    """Space dropped but between digits: 1 1/2 is not 11/2."""
    return re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text)


def _with_degrees(text: str) -> str:
    r"""Degrees count in \sin 30^\circ, where a bare number means radians; alone, 30^\circ is 30."""
    if start := _TRIGONOMETRY.search(text):
        rest = _DEGREES.sub(r"\\frac{\g<angle>\\pi}{180}", text[start.end() :])
        text = text[: start.end()] + re.sub(rf"(?<=[)}}\]])\s*{_DEGREE}", r"\\frac{\\pi}{180}", rest)
    return text


def _bracketed(text: str) -> str | None:
    """What is between the first and the last character if these are one pair of brackets (]a, b[ is none)."""
    start = 2 if text.startswith("\\{") else 1
    if (
        len(text) < start + 1
        or text[start - 1] not in _OPEN
        or (start == 1 and text[0] == "{")
        or text[-1] not in _CLOSE
    ):
        return None
    depth = 0
    for match in re.finditer(r"\\[{}]|[()\[\]{}]", text):
        depth += 1 if match.group()[-1] in _OPEN else -1
        if depth == 0:
            end = match
            break
    else:
        return None
    if end.end() != len(text) or (start == 2) != (end.group() == "\\}"):
        return None
    return text[start : end.start()].strip()


def _root(match: re.Match[str]) -> str:
    return f"\\sqrt{_ROOTS[match['root']]}{{{match['inside'] or match['braced'] or match['bare'] or ''}}}"


def _relation(match: re.Match[str]) -> str:
    sign = match["sign"] or match["turned"]
    factorial = sign == "!" and re.search(r"[0-9A-Za-z)]\s*$", match.string[: match.start()])
    return match.group() if factorial else _RELATIONS[sign]


def balanced(text: str) -> bool:
    """Whether braces match in pairs: a half of a formula means something else than the whole."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth < 0:
            return False
    return depth == 0


def _braced(match: re.Match[str]) -> str:
    first, second = (part if part.startswith("{") else f"{{{part}}}" for part in match.groups()[1:])
    return f"\\{match.group(1)}{first}{second}"


def _synonym(match: re.Match[str]) -> str:
    name = match.group(1)
    other = _SYNONYMS.get(name)
    if other is None:
        return match.group()
    return f"\\{other}" if other.isalpha() or other in "{}" else other
