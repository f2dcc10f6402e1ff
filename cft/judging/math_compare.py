r"""Is a mathematical answer the gold one? Text, numbers and structure in plain Python first; algebra for the rest.

An answer is taken apart (`cft/judging/latex.py`): a tuple, an interval and a matrix are compared part by part in order, a set,
"1 or 2" and $\pm$ in any order. A list without brackets (1, 2) may be meant either way: the caller says which. What
is left over goes to `algebra`, a function of (gold, prediction). Where nobody can tell, the verdict is "undecided".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cft.judging.algebra import Decided, too_hard
from cft.judging.answers import Reading, agrees, read_number, tidy
from cft.judging.latex import Form, assigned, form_of, one_spelling, readable
from cft.judging.quantities import quantity

Lists = Literal["set", "sequence", "unknown"]
Algebra = Callable[[str, str], tuple[Decided, str]]

MAX_CALLS = 16  # of algebra for one answer
MAX_DEPTH = 6
_WORDS = re.compile(r"[A-Za-z\s.,'!?;:()-]+")
_JOINTS = frozenset(("or", "and", "endrow", "matrix"))
_FUNCTION_NAMES = "sin cos tan sec csc cot log ln exp min max gcd lcm mod arcsin arccos arctan sqrt frac"
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_ARTICLES = frozenset(("a", "an", "the", "is", "are", "it"))
_OPPOSITES = (frozenset(("yes", "no")), frozenset(("true", "false")), frozenset(("odd", "even", "neither")))
_NEGATIONS = frozenset(("not", "no", "never", "neither", "non", "cannot", "isn't", "doesn't"))


def compare(*, gold: str, answer: str, lists: Lists, algebra: Algebra) -> tuple[Decided, str]:
    """(verdict, reason) of an answer, both as they were written."""
    return _Comparison(lists, algebra).texts(gold, answer)


@dataclass(slots=True)
class _Comparison:
    lists: Lists
    algebra: Algebra
    calls: int = 0
    depth: int = field(default=0)

    def texts(self, gold: str, answer: str) -> tuple[Decided, str]:
        if _same(gold, answer):
            return "right", "the same text"
        for what, text in (("gold answer", gold), ("answer", answer)):
            if danger := too_hard(text):
                return "undecided", f"{what} refused: {danger}"
        if self.depth > MAX_DEPTH:
            return "undecided", "nested too deeply"
        if decided := _numbers(gold, answer):
            return decided
        self.depth += 1
        try:
            judgement, reason = self._unlike(readable(gold), readable(answer))
        finally:
            self.depth -= 1
        if judgement == "wrong" and _in_degrees(gold) != _in_degrees(answer) and "\\pi" in gold + answer:
            return "undecided", "degrees on one side, perhaps radians on the other"
        return judgement, reason

    def _unlike(self, gold: str, answer: str) -> tuple[Decided, str]:
        """Two answers that are not the same text; both as `readable` gives them."""
        if not answer.strip():
            return "wrong", "an empty answer"
        (gold_name, gold_rest), (name, rest) = assigned(gold), assigned(answer)
        if gold_name and name and gold_name != name and not _both_functions(gold_name, name):
            if self.texts(gold_rest, rest)[0] == "right":
                return "undecided", f"{gold_name} and {name} have the same value"
            return self._algebra(gold, answer)
        if gold_name or name:
            # "x = 5" and "5"; an equation in two variables has no rest that could stand for it.
            judgement, reason = self.texts(gold_rest, rest)
            if judgement == "right" or (gold_name and name) or not (_equation(gold) or _equation(answer)):
                return judgement, reason
            return self._algebra(gold, answer)
        if decided := _numbers(gold, answer):
            return decided
        if decided := _words(gold, answer):
            return decided
        if _prose(gold) or _prose(answer):
            return "undecided", "words and mathematics together: compared as text alone"
        return self._forms(form_of(gold), form_of(answer), gold, answer)

    def _forms(self, gold: Form, answer: Form, gold_text: str, text: str) -> tuple[Decided, str]:
        kinds = {gold.kind, answer.kind}
        if kinds == {"one"}:
            if gold.parts[0] != gold_text or answer.parts[0] != text:
                return self.texts(gold.parts[0], answer.parts[0]) if self.depth < 3 else self._algebra(gold_text, text)
            return self._algebra(gold_text, text)
        if "one" in kinds:
            return self._one_against_many(gold, answer, gold_text, text)
        if kinds <= {"range", "tuple", "list"} and "range" in kinds:
            return self._ranges(gold, answer)
        if kinds <= {"tuple", "matrix"}:
            if kinds == {"matrix"} and gold.columns != answer.columns and len(gold.parts) == len(answer.parts):
                return "undecided", "matrices of different shape"
            return self._in_order(gold.parts, answer.parts)
        if kinds == {"list"}:
            return self._lists(gold.parts, answer.parts)
        if kinds <= {"list", "tuple", "matrix"}:
            judgement, reason = self._in_order(gold.parts, answer.parts)
            if judgement == "wrong" and gold.kind == "list" and self._any_order(gold.parts, answer.parts)[0] != "wrong":
                return "undecided", "the same parts in another order, in brackets on one side"
            return judgement, reason
        if kinds <= {"set", "either", "list", "union"}:
            return self._any_order(gold.parts, answer.parts)
        judgement, reason = self._algebra(gold_text, text)
        return ("undecided", f"a {gold.kind} and a {answer.kind}") if judgement == "wrong" else (judgement, reason)

    def _one_against_many(self, gold: Form, answer: Form, gold_text: str, text: str) -> tuple[Decided, str]:
        many, single = (gold, text) if answer.kind == "one" else (answer, gold_text)
        if many.kind in ("set", "either", "list") and len(many.parts) == 1:
            return self.texts(gold.parts[0], answer.parts[0])
        if read_number(single, whole=True).value is not None:
            if many.kind in ("set", "either") and self._any_order(many.parts, (single,))[0] != "wrong":
                return self._any_order(gold.parts, answer.parts)
            return "wrong", "one number where the other answer has several parts"
        judgement, reason = self._algebra(gold_text, text)
        return ("undecided", "one expression and several parts") if judgement == "wrong" else (judgement, reason)

    def _ranges(self, gold: Form, answer: Form) -> tuple[Decided, str]:
        judgement, reason = self._in_order(gold.parts, answer.parts)
        if judgement != "right":
            return judgement, reason
        for i, end in enumerate(zip(gold.ends or "  ", answer.ends or "  ", strict=True)):
            if end[0] != end[1] and " " not in end and "\\infty" not in gold.parts[i]:
                return "wrong", "the ends of the interval differ"
        if "list" in (gold.kind, answer.kind) and gold.kind == "range":
            return "undecided", "an interval and two numbers"
        return "right", reason

    def _lists(self, gold: Sequence[str], answer: Sequence[str]) -> tuple[Decided, str]:
        in_order = self._in_order(gold, answer)
        names = {assigned(part)[0] for part in gold}
        solutions = len(names) == 1 and names != {""}  # a = 2, a = 3: values of one unknown have no order
        if in_order[0] == "right" or (self.lists == "sequence" and not solutions):
            return in_order
        judgement, reason = self._any_order(gold, answer)
        if judgement == "right" and self.lists == "unknown" and not solutions:
            return "undecided", "the same parts in another order, without brackets"
        return judgement, reason

    def _in_order(self, gold: Sequence[str], answer: Sequence[str]) -> tuple[Decided, str]:
        if len(gold) != len(answer):
            return "wrong", f"{len(answer)} parts where the gold answer has {len(gold)}"
        verdicts = []
        for pair in zip(gold, answer, strict=True):
            verdicts.append(self.texts(*pair)[0])
            if verdicts[-1] == "wrong":
                return "wrong", "compared part by part"
        return ("undecided" if "undecided" in verdicts else "right"), "compared part by part"

    def _any_order(self, gold: Sequence[str], answer: Sequence[str]) -> tuple[Decided, str]:
        """Every part of each side must have its equal on the other."""
        if len(gold) * len(answer) > 400:
            return "undecided", "too many parts to compare in any order"
        table: list[list[Decided]] = [[self._cheaply(g, a) for a in answer] for g in gold]
        for i, g in enumerate(gold):
            for j, a in enumerate(answer):
                settled = "right" in table[i] and any(row[j] == "right" for row in table)
                if table[i][j] == "undecided" and not settled:
                    table[i][j] = self.texts(g, a)[0]
        best = [_best(row) for row in table] + [_best([row[j] for row in table]) for j in range(len(answer))]
        if "wrong" in best or not best:
            return ("wrong" if best else "right"), "compared as sets"
        return ("undecided" if "undecided" in best else "right"), "compared as sets"

    def _cheaply(self, gold: str, answer: str) -> Decided:
        """Without algebra; "undecided" where that is not enough."""
        if _same(gold, answer):
            return "right"
        decided = _numbers(gold, answer)
        return decided[0] if decided else "undecided"

    def _algebra(self, gold: str, answer: str) -> tuple[Decided, str]:
        self.calls += 1
        if self.calls > MAX_CALLS:
            return "undecided", f"more than {MAX_CALLS} parts need algebra"
        return self.algebra(_for_algebra(gold), _for_algebra(answer))


def _same(gold: str, answer: str) -> bool:
    spelled = one_spelling(gold)
    return (spelled != "" and spelled == one_spelling(answer)) or _collapsed(gold) == _collapsed(answer) != ""


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _numbers(gold: str, answer: str) -> tuple[Decided, str] | None:
    """The verdict where both are plain numbers, None where one is not."""
    (gold_name, gold_rest), (name, rest) = assigned(gold), assigned(answer)
    if gold_name and name and gold_name != name:
        return None
    read, expected = read_number(rest, whole=True), read_number(gold_rest, whole=True)
    if read.value is None or expected.value is None:
        return None
    ours, theirs = quantity(_unit(rest, read)), quantity(_unit(gold_rest, expected))
    if ours and theirs and ours != theirs:
        same = ours[0] == theirs[0] and read.value * ours[1] == expected.value * theirs[1]
        return ("right" if same else "wrong"), f"compared as quantities ({ours[0]} and {theirs[0]})"
    return ("right" if agrees(read, expected) else "wrong"), "compared as numbers"


def _unit(text: str, read: Reading) -> str:
    """What stands behind the number, or the currency sign before it."""
    return "$" if re.match(r"\s*[-+]?\s*\\\$", text) else tidy(text).rpartition(read.text)[2]


def _words(gold: str, answer: str) -> tuple[Decided, str] | None:
    """The verdict where the gold answer or the answer is words; None where both are mathematics."""
    gold_words, words = _as_words(gold), _as_words(answer)
    if gold_words is None and words is None:
        return None
    if gold_words is None or words is None:
        # "no solution" for 12, 12 for "ellipse": wrong; a formula with words in it may say the same.
        said, other = (gold_words, answer) if gold_words is not None else (words or [], gold)
        product = len(said) == 1 and len(said[0]) < 5 and read_number(other, whole=True).value is None
        if product or _prose(other):
            return None  # abc may be a product
        return "wrong", "words on one side, mathematics on the other"
    if gold_words == words:
        return "right", "compared as words"
    if sorted("".join(gold_words)) == sorted("".join(words)) and len("".join(words)) < 6:
        return None  # abc and cba are products
    one, two = frozenset(gold_words), frozenset(words)
    opposite = any(len(one & pair) == 1 and len(two & pair) == 1 and one & pair != two & pair for pair in _OPPOSITES)
    if not opposite and (one & _NEGATIONS) == (two & _NEGATIONS) and (one <= two or two <= one):
        return "undecided", "one answer says more than the other"
    return "wrong", "compared as words"


def _as_words(text: str) -> list[str] | None:
    """The words of a text that has nothing else, without articles; None for mathematics. A single letter is a word."""
    plain = text.replace("\\ ", " ").strip().strip("()[].")
    if not _WORDS.fullmatch(plain or " ") or re.search(r"(?<![A-Za-z]{2})-|-(?![A-Za-z]{2})", plain):
        return None
    words = [word.casefold().strip("'-") for word in re.findall(r"[A-Za-z'-]+", plain)]
    if not (any(len(word) >= 3 for word in words) or (len(words) == 1 and len(words[0]) == 1) or words == ["no"]):
        return None
    if any(word in _FUNCTIONS for word in words) or ("," in plain and all(len(word) == 1 for word in words)):
        return None
    return [word for word in words if word not in _ARTICLES or len(words) == 1]


def _in_degrees(text: str) -> bool:
    return re.search(r"\\circ(?![a-z])|°|\\degree|degrees?\b", text) is not None


def _prose(text: str) -> bool:
    """Two words or more of three letters or more, in a text that has mathematics too. A number with a unit is none."""
    if read_number(text, whole=True).value is not None:
        return False
    plain = re.sub(r"\\[A-Za-z]+|_\s*\{[^{}]*\}|_\s*\w+", " ", _without_unit(text))
    words = [word for word in re.findall(r"[A-Za-z]{3,}", plain) if word.casefold() not in _FUNCTIONS | _JOINTS]
    return len(words) >= 2


def _without_unit(text: str) -> str:
    """A formula without a known unit behind it: l^2/8 square feet."""
    match = re.match(
        r"(.*?[0-9})\s])\s*((?:(?:square|cubic|sq|cu)\.?\s+)?[A-Za-z]{2,}(?:\s+(?:squared|cubed))?)\s*$",
        text,
        re.DOTALL,
    )
    return match.group(1) if match and quantity(match.group(2)) else text


def _equation(text: str) -> bool:
    return re.search(r"(?<![<>!])=", text) is not None


def _both_functions(a: str, b: str) -> bool:
    """y and f(x)."""
    return ("(" in a) != ("(" in b) and "y" in (a, b)


def _best(verdicts: Sequence[Decided]) -> Decided:
    return "right" if "right" in verdicts else "undecided" if "undecided" in verdicts else "wrong"


def _for_algebra(text: str) -> str:
    """LaTeX again, with plain numbers as exact fractions (math-verify takes 1e5 for a product)."""
    read = read_number(text, whole=True)
    if read.value is not None:
        value = read.value * read.factor
        sign = "-" if value < 0 else ""
        above = f"{sign}{abs(value.numerator)}"
        return above if value.denominator == 1 else f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    text = _without_unit(text)
    text = text.replace("\\endmatrix", "\\end{pmatrix}").replace("\\matrix", "\\begin{pmatrix}")
    return re.sub(r"\s+", " ", text.replace("\\endrow", "\\\\ ").replace("\\'", "'")).strip().rstrip(".,;")
