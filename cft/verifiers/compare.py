r"""Is a mathematical answer the gold one? Text, numbers and structure in plain Python first; algebra for the rest.

An answer is taken apart: a tuple, an interval and a matrix are compared part by part in order, a set,
"1 or 2" and $\pm$ in any order. A list without brackets (1, 2) may be meant either way: the caller says which. What
is left over goes to `algebra`, a function of (gold, prediction). Where nobody can tell, the verdict is "undecided".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cft.verifiers.algebra import Decided, too_hard
from cft.verifiers.latex import Structure, assigned, one_spelling, structure_of
from cft.verifiers.letters import is_word
from cft.verifiers.measures import compare_numbers, in_one_unit, without_noun
from cft.verifiers.numbers import is_near, read_number
from cft.verifiers.spelling import for_algebra, usual
from cft.verifiers.words import compare_texts, compare_words, prose

Lists = Literal["set", "sequence", "unknown"]
Algebra = Callable[[str, str], tuple[Decided, str]]

MAX_CALLS = 16  # of algebra for one answer
MAX_DEPTH = 6
_CHOICE = re.compile(r"\(?([A-H])\)(?!\s*[(,]|\s*(?:and|or)\b)\s*(.*)", re.DOTALL)
_BASED = re.compile(r"\(?\s*(?P<number>[0-9A-F]+)\s*\)?\s*_\s*(?:\{\s*(?P<base>\w+)\s*\}|(?P<digit>[0-9]))")
_WORD = re.compile(r"(?<![\\A-Za-z])(?<!begin\{)(?<!end\{)[A-Za-z]{4,}")
# What may be left of "=" as a name: x, x_1, f(x), P(X = 2), f^{-1}(x), AB, |z|, \angle ABC, \cos A, words, (x, y), dy/dx.
_LETTERS = r"(?:\\(?!ln|log|exp|sqrt|frac)[A-Za-z]+|[A-Za-z]|[A-Z]{2,4}|[A-Za-z]{3,}(?:\s+[A-Za-z]+)*)"
_NAME = re.compile(
    rf"(?:m\s*)?(?:\\(?:angle|overline|triangle|widehat|hat|bar|sin|cos|tan)\s*)?\{{?{_LETTERS}\}}?"
    r"(?:_(?:\{[^{}]*\}|\w))?'*(?:\s*\^\s*\{\s*(?:-1|(?:\\prime\s*)+)\s*\})?\s*(?:\([^()]*\)|\[[A-Z]\])?"
    rf"|\|\s*{_LETTERS}\s*\||\(\s*[A-Za-z]\s*(?:,\s*[A-Za-z]\s*)+\)|\\frac\s*\{{\s*d\s*[A-Za-z]\s*\}}\s*\{{\s*d\s*[A-Za-z]\s*\}}"
)


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
        if decided := compare_numbers(gold, answer) or compare_texts(gold, answer):
            return decided
        self.depth += 1
        try:
            decision, reason = self._unlike(usual(gold), usual(answer))
        finally:
            self.depth -= 1
        if decision == "wrong" and _in_degrees(gold) != _in_degrees(answer) and "\\pi" in gold + answer:
            return "undecided", "degrees on one side, perhaps radians on the other"
        return decision, reason

    def _unlike(self, gold: str, answer: str) -> tuple[Decided, str]:
        """Two answers that are not the same text; both as `usual` gives them."""
        if not answer.strip():
            return "wrong", "an empty answer"
        if decided := _choices(gold, answer) or _bases(gold, answer) or self._approximate(gold, answer):
            return decided
        option = _CHOICE.fullmatch(gold.strip())
        if option and option[2] and self.texts(option[2], answer)[0] == "right":
            return "right", "what the option says"
        (gold_name, gold_rest), (name, rest) = assigned(gold), assigned(answer)
        if gold_name and name and gold_name != name and not _both_functions(gold_name, name):
            if self.texts(gold_rest, rest)[0] == "right":
                return "undecided", f"{gold_name} and {name} have the same value"
            return self._algebra(gold, answer)
        if gold_name and name:
            return self.texts(gold_rest, rest)
        sides, gold_sides = equation_sides(answer), equation_sides(gold)
        if len(sides) > 1 and len(gold_sides) > 1:
            return self._algebra(gold, answer)
        if len(sides) > 1 or len(gold_sides) > 1:
            return self._against_equation(gold, answer, sides if len(sides) > 1 else gold_sides)
        if gold_name or name:  # x \in S
            return self.texts(gold_rest, rest)
        if decided := compare_numbers(gold, answer):
            return decided
        if decided := compare_words(gold, answer):
            return decided
        if prose(gold) or prose(answer):
            return "undecided", "words and mathematics together: compared as text alone"
        return self._forms(structure_of(gold), structure_of(answer), gold, answer)

    def _approximate(self, gold: str, answer: str) -> tuple[Decided, str] | None:
        """1/3 \\approx 0.333: the exact side counts, and the other one must be near it."""
        exact, sign, near = answer.partition("\\approx")
        if not sign or "\\approx" in gold:
            return None
        exact, near = (side.strip(" =$") for side in (exact, near))
        decision, reason = self.texts(gold, exact)
        if decision == "wrong" and self.texts(gold, near)[0] == "right":
            return "undecided", "the approximation is the gold answer, the exact value is not"
        if decision == "right" and not is_near(near, read_number(gold, whole=True)):
            return "undecided", "an exact value, and an approximation that is not near it"
        return decision, reason

    def _against_equation(self, gold: str, answer: str, equation: list[str]) -> tuple[Decided, str]:
        """An expression and an equation: its right side counts where its left one is a name, or holds no letter."""
        left, last = equation[0], equation[-1]
        sides = (last, answer) if len(equation_sides(gold)) > 1 else (gold, last)
        if not all(sides):
            return self._algebra(gold, answer)
        decision, reason = self.texts(*sides)
        if decision != "right" or _NAME.fullmatch(left) or not re.search(r"[A-Za-z]", re.sub(r"\\[a-z]+", "", left)):
            return decision, reason
        return "undecided", "an equation, and an expression that is its right side"

    def _forms(self, gold: Structure, answer: Structure, gold_text: str, text: str) -> tuple[Decided, str]:
        kinds = {gold.kind, answer.kind}
        if kinds == {"one"}:
            if gold.parts[0] != gold_text or answer.parts[0] != text:
                return self.texts(gold.parts[0], answer.parts[0]) if self.depth < 3 else self._algebra(gold_text, text)
            return self._algebra(gold_text, text)
        if "one" in kinds:
            return self._one_against_many(gold, answer, gold_text, text)
        if "range" in kinds:
            if not kinds <= {"range", "tuple", "list"}:
                decision, reason = self._algebra(gold_text, text)
                return (
                    ("undecided", f"a {gold.kind} and a {answer.kind}") if decision == "wrong" else (decision, reason)
                )
            names = {_bounded_name(side) for side in (gold_text, text)} - {""}
            decision, reason = self._ranges(gold, answer)
            return (
                ("undecided", "bounds of two variables")
                if decision == "right" and len(names) == 2
                else (decision, reason)
            )
        if (named := self._named(gold, answer)) is not None:
            return named
        if kinds == {"list"}:
            return self._lists(gold.parts, answer.parts)
        if not kinds & {"tuple", "matrix"}:
            return self._any_order(gold.parts, answer.parts)
        if not kinds <= {"tuple", "matrix", "list"}:
            return "undecided", f"a {gold.kind} and a {answer.kind}"
        decision, reason = self._in_order(gold.parts, answer.parts)
        if decision == "wrong" and gold.kind == "list" and self._any_order(gold.parts, answer.parts)[0] != "wrong":
            return "undecided", "the same parts in another order, in brackets on one side"
        if decision == "right" and "matrix" in kinds and not _same_shape(gold, answer):
            return "undecided", "the entries of a matrix, in other places or without any"
        return decision, reason

    def _named(self, gold: Structure, answer: Structure) -> tuple[Decided, str] | None:
        """Values of several unknowns: by name where both sides name them, else in the order of the names."""
        names, given = ([assigned(part)[0] for part in form.parts] for form in (gold, answer))
        open_forms = {gold.kind, answer.kind} <= {"list", "either", "tuple"}
        of_names = [side for side in (names, given) if len(side) > 1 and all(side) and len(set(side)) == len(side)]
        if not open_forms or not of_names or len(names) != len(given):
            return None
        if len(of_names) == 2 and set(names) == set(given):
            ordered = [answer.parts[given.index(name)] for name in names]
            return self._in_order(gold.parts, ordered)
        if len(of_names) == 1 and any(any(side) for side in (names, given) if side is not of_names[0]):
            return None
        decision, reason = self._in_order(gold.parts, answer.parts)
        if decision == "wrong" and self._any_order(gold.parts, answer.parts)[0] != "wrong":
            return "undecided", "the same values in another order than that of the names"
        return decision, reason

    def _one_against_many(self, gold: Structure, answer: Structure, gold_text: str, text: str) -> tuple[Decided, str]:
        many, single = (gold, text) if answer.kind == "one" else (answer, gold_text)
        if many.kind in ("set", "either", "list") and len(many.parts) == 1:
            return self.texts(gold.parts[0], answer.parts[0])
        if read_number(single, whole=True).value is not None:
            if many.kind in ("set", "either") and self._any_order(many.parts, (single,))[0] != "wrong":
                return self._any_order(gold.parts, answer.parts)
            return "wrong", "one number where the other answer has several parts"
        decision, reason = self._algebra(gold_text, text)
        return ("undecided", "one expression and several parts") if decision == "wrong" else (decision, reason)

    def _ranges(self, gold: Structure, answer: Structure) -> tuple[Decided, str]:
        decision, reason = self._in_order(gold.parts, answer.parts)
        if decision != "right":
            return decision, reason
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
        decision, reason = self._any_order(gold, answer)
        if decision == "right" and self.lists == "unknown" and not solutions:
            return "undecided", "the same parts in another order, without brackets"
        return decision, reason

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
                decided = "right" in table[i] and any(row[j] == "right" for row in table)
                if table[i][j] == "undecided" and not decided:
                    table[i][j] = self.texts(g, a)[0]
        best = [_best(row) for row in table] + [_best([row[j] for row in table]) for j in range(len(answer))]
        if "wrong" in best or not best:
            return ("wrong" if best else "right"), "compared as sets"
        return ("undecided" if "undecided" in best else "right"), "compared as sets"

    def _cheaply(self, gold: str, answer: str) -> Decided:
        """Without algebra; "undecided" where that is not enough."""
        if _same(gold, answer):
            return "right"
        decided = compare_numbers(gold, answer)
        return decided[0] if decided else "undecided"

    def _algebra(self, gold: str, answer: str) -> tuple[Decided, str]:
        self.calls += 1
        if self.calls > MAX_CALLS:
            return "undecided", f"more than {MAX_CALLS} parts need algebra"
        sides = in_one_unit(gold, answer)
        if sides is None:
            return "wrong", "units of different kinds"
        one, two = (for_algebra(without_noun(side)) for side in sides)
        if word := next((word for side in (one, two) for word in _WORD.findall(side) if is_word(word)), ""):
            return "undecided", f"a word in a formula: {word}"  # no product of its letters
        return self.algebra(one, two)


def _same(gold: str, answer: str) -> bool:
    spelled = one_spelling(gold)
    return (spelled != "" and spelled == one_spelling(answer)) or _collapsed(gold) == _collapsed(answer) != ""


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _choices(gold: str, answer: str) -> tuple[Decided, str] | None:
    """(A) and (A) 12: an option's letter, alone on one side at least; None where that is not what they are."""
    one, two = _CHOICE.fullmatch(gold.strip()), _CHOICE.fullmatch(answer.strip())
    if (one is None) != (two is None):  # B for (B) 12
        one, two = (match or re.fullmatch(r"([A-H])()", side.strip()) for match, side in ((one, gold), (two, answer)))
    if one is None or two is None or (one[2] and two[2]):
        return None
    return ("right" if one[1] == two[1] else "wrong"), "compared as options"


def _bases(gold: str, answer: str) -> tuple[Decided, str] | None:
    """4321_5 and 4321_6, of which math-verify reads 4321. An answer may leave out the base, but not make one up."""
    one, two = (_BASED.fullmatch(side.strip()) for side in (gold, answer))
    plain = re.fullmatch(r"[0-9A-F]+", answer.strip())
    if one is None or (two is None and plain is None):
        return ("undecided", "a base that the gold answer does not name") if two else None
    bases = [read_number(match["base"] or match["digit"], whole=True).value for match in (one, two) if match]
    if len(set(bases)) > 1:
        return "wrong", f"base {bases[1]}, where the gold answer has base {bases[0]}"
    digits = two["number"] if two else answer.strip()
    return ("right" if one["number"].lstrip("0") == digits.lstrip("0") else "wrong"), "compared in one base"


def _bounded_name(text: str) -> str:
    """The variable of an inequality, "" for an interval in brackets."""
    names = (
        set(re.findall(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])", text))
        if re.search(r"[<>]|\\[lg]e(?![a-z])", text)
        else ()
    )
    return next(iter(names)) if len(names) == 1 else ""


def _in_degrees(text: str) -> bool:
    return re.search(r"\\circ(?![a-z])|°|\\degree|degrees?\b", text) is not None


def equation_sides(text: str) -> list[str]:
    """The sides of one equation, or of a chain a = b = c; the text alone where that is not what it is."""
    depth, sides, start = 0, [], 0
    for match in re.finditer(
        r"\\[{}]|[()\[\]{}]|(?:(?<![<>!])|(?<=[0-9)]!))=|,|;|<|>|\\(?:le|ge|ne|in|cup|matrix|endmatrix)(?![a-z])|\b(?:or|and)\b",
        text,
    ):
        found = match.group()
        if found[-1] in "([{" or found == "\\matrix":
            depth += 1
        elif found[-1] in ")]}" or found == "\\endmatrix":
            depth -= 1
        elif depth == 0 and found == "=":
            sides.append(text[start : match.start()].strip())
            start = match.end()
        elif depth == 0 and (len(sides) != 1 or "=" in text[match.end() :]):
            return [text]  # a list of equations, an inequality; but x = 1, 2 is one
    return [*sides, text[start:].strip()]


def _same_shape(gold: Structure, answer: Structure) -> bool:
    """Two matrices of as many columns, or a vector and a tuple."""
    if gold.kind == answer.kind:
        return gold.columns == answer.columns
    matrix, other = (gold, answer) if gold.kind == "matrix" else (answer, gold)
    return other.kind == "tuple" and matrix.columns in (1, len(matrix.parts))


def _both_functions(a: str, b: str) -> bool:
    """y and f(x)."""
    return ("(" in a) != ("(" in b) and "y" in (a, b)


def _best(verdicts: Sequence[Decided]) -> Decided:
    return "right" if "right" in verdicts else "undecided" if "undecided" in verdicts else "wrong"
