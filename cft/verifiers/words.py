r"""Answers in words: two of them compared, and words against mathematics where a small table says what they mean.

Words that the table does not know, against a formula, are left open: nobody can tell whether they say the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cft.verifiers.algebra import Decided
from cft.verifiers.latex import one_spelling
from cft.verifiers.measures import without_unit
from cft.verifiers.numbers import read_number

_WORDS = re.compile(r"[A-Za-z\s.,'!?;:()-]+")
_JOINTS = frozenset(("or", "and", "endrow", "matrix"))
_FUNCTION_NAMES = "sin cos tan sec csc cot log ln exp min max gcd lcm mod arcsin arccos arctan sqrt frac"
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_ARTICLES = frozenset(("a", "an", "the", "is", "are", "it"))
_OPPOSITES = (frozenset(("yes", "no")), frozenset(("true", "false")), frozenset(("odd", "even", "neither")))
_NEGATIONS = frozenset(("not", "no", "never", "neither", "non", "cannot", "isn't", "doesn't"))
_ROMAN = frozenset(["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X"])
_MEANINGS = {
    "every real number": "all real numbers|all reals|all real|real numbers|every real number|any real number|reals",
    "nothing": "no solution|no solutions|no real solution|no real solutions|none|empty set|dne|does not exist|undefined"
    "|no such number|no such numbers|no answer|no limit|limit does not exist|no real roots|no real root",
    "infinity": "infinity|positive infinity|infinite",
    "minus infinity": "negative infinity|minus infinity",
}
_SAID = {phrase: meaning for meaning, phrases in _MEANINGS.items() for phrase in phrases.split("|")}
_WRITTEN = {
    "(-\\infty,\\infty)": "every real number",
    "R": "every real number",
    "\\R": "every real number",
    "\\Reals": "every real number",
    "-\\infty<x<\\infty": "every real number",
    "\\emptyset": "nothing",
    "«»": "nothing",
    "\\infty": "infinity",
    "-\\infty": "minus infinity",
}


def compare_words(gold: str, answer: str) -> tuple[Decided, str] | None:
    """The verdict where the gold answer or the answer is words; None where both are mathematics."""
    gold_words, words = _as_words(gold), _as_words(answer)
    if gold_words is None and words is None:
        return None
    one, two = meaning(gold), meaning(answer)
    if one and two:
        return ("right" if one == two else "wrong"), f"{two}, where the gold answer is {one}"
    if gold_words is None or words is None:
        return _against_mathematics(gold_words or words or [], *((gold, answer) if words is None else (answer, gold)))
    if gold_words == words:
        return "right", "compared as words"
    if sorted("".join(gold_words)) == sorted("".join(words)) and len("".join(words)) < 6:
        if gold.strip("()[]. ").isupper() and answer.strip("()[]. ").isupper():
            return "undecided", "the same capitals in another order"
        return None  # abc and cba are products
    return _told(gold_words, words)


def compare_texts(gold: str, answer: str) -> tuple[Decided, str] | None:
    r"""The verdict on two anagrams of which one at least is in \text{...}: such letters are no product."""
    one, two = _in_text(gold), _in_text(answer)
    if one is None and two is None:
        return None
    first, second = (
        re.sub(r"[^A-Za-z]", "", said if said is not None else raw).casefold()
        for said, raw in ((one, gold), (two, answer))
    )
    if sorted(re.findall(r"\w+", one or gold)) == sorted(re.findall(r"\w+", two or answer)):
        return None  # A and B, B and A
    plain = all(said is not None or re.fullmatch(r"[A-Za-z\s().]+", raw) for said, raw in ((one, gold), (two, answer)))
    if plain and first != second and sorted(first) == sorted(second) and first:
        return "wrong", "the same letters in another order, which is another word"
    return None


def meaning(text: str) -> str:
    """What the table says that a text means, words or mathematics; "" where it does not know."""
    if written := _WRITTEN.get(one_spelling(text)):
        return written
    words = _as_words(text)
    return "" if words is None else _SAID.get(" ".join(words), "")


def prose(text: str) -> bool:
    """Two words or more of three letters or more, in a text that has mathematics too. A number with a unit is none."""
    if read_number(text, whole=True).value is not None:
        return False
    plain = re.sub(r"\\[A-Za-z]+|_\s*\{[^{}]*\}|_\s*\w+", " ", without_unit(text))
    words = [word for word in re.findall(r"[A-Za-z]{3,}", plain) if word.casefold() not in _FUNCTIONS | _JOINTS]
    return len(words) >= 2


def _against_mathematics(said: Sequence[str], text: str, other: str) -> tuple[Decided, str] | None:
    # "no solution" for 12, 12 for "ellipse": wrong; a formula may say the same in its own way.
    number = read_number(other, whole=True).value is not None
    product = len(said) == 1 and len(said[0]) < 5 and not number and text.strip().casefold() not in _SAID
    if product or prose(other):
        return None  # abc may be a product
    if number or meaning(text):
        return "wrong", "words on one side, mathematics on the other"
    return "undecided", "words on one side, mathematics on the other"


def _told(gold: Sequence[str], answer: Sequence[str]) -> tuple[Decided, str]:
    one, two = frozenset(gold), frozenset(answer)
    opposite = any(len(one & pair) == 1 and len(two & pair) == 1 and one & pair != two & pair for pair in _OPPOSITES)
    if not opposite and (one & _NEGATIONS) == (two & _NEGATIONS) and (one <= two or two <= one):
        return "undecided", "one answer says more than the other"
    return "wrong", "compared as words"


def _as_words(text: str) -> list[str] | None:
    """The words of a text that has nothing else, without articles; None for mathematics. A single letter is a word,
    a list of letters or Roman numbers (A and C; I, II) is none: it has parts."""
    plain = text.replace("\\ ", " ").strip().strip("()[].")
    if not _WORDS.fullmatch(plain or " ") or re.search(r"(?<![A-Za-z]{2})-|-(?![A-Za-z]{2})", plain):
        return None
    listed = [word for word in re.findall(r"[A-Za-z]+", plain) if word not in ("and", "or")]
    if len(listed) > 1 and all(word in _ROMAN or (len(word) == 1 and word.isupper()) for word in listed):
        return None
    words = [word.casefold().strip("'-") for word in re.findall(r"[A-Za-z'-]+", plain)]
    if not (any(len(word) >= 3 for word in words) or (len(words) == 1 and len(words[0]) == 1) or words == ["no"]):
        return None
    if any(word in _FUNCTIONS for word in words) or ("," in plain and all(len(word) == 1 for word in words)):
        return None
    return [word for word in words if word not in _ARTICLES or len(words) == 1]


def _in_text(text: str) -> str | None:
    match = re.fullmatch(r"\s*\$?\(?\\(?:text(?:bf|rm|it|sf|tt)?|mbox|mathrm)\s*\{([A-Za-z\s]+)\}\)?\$?\s*\.?\s*", text)
    return match.group(1) if match else None
