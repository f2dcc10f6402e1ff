"""Mathematical answers: structure, order, units, words; never a wrong verdict by accident of how something is written."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cft.verifiers import Math
from cft.verifiers.algebra import Decided, equal_by_algebra
from cft.verifiers.compare import compare
from cft.verifiers.latex import one_spelling, readable, structure_of
from cft.verifiers.units import quantity

MATH = Math(fallback_last_number=True, lists="set")


def graded(answer: str, gold: str, lists: Literal["set", "sequence", "unknown"] = "set") -> str:
    return str(Math(fallback_last_number=True, lists=lists)(f"\\boxed{{{answer}}}", gold).decision)


@pytest.mark.parametrize("lists, decision", [("set", "right"), ("sequence", "wrong"), ("unknown", "undecided")])
def test_the_order_of_a_list_without_brackets_matters_as_the_verifier_is_told(
    lists: Literal["set", "sequence", "unknown"], decision: str
) -> None:
    assert graded("2,1", "1,2", lists) == decision
    assert graded("1,2", "1,2", lists) == "right"
    assert graded("1,3", "1,2", lists) == "wrong"
    assert graded("\\sqrt{4},1", "1,2", lists) == decision
    assert graded("\\{2,1\\}", "1,2", lists) == "right"  # braces say that the order is free
    assert graded("2 \\text{ or } 1", "1,2", lists) == "right"
    assert graded("(2,1)", "(1,2)", lists) == "wrong"


NUMBERS = st.integers(-99, 99).map(str) | st.fractions(min_value=-9, max_value=9, max_denominator=9).map(
    lambda f: f"\\frac{{{f.numerator}}}{{{f.denominator}}}"
)


@settings(max_examples=50, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=4, unique_by=lambda text: text), st.randoms(use_true_random=False))
def test_sets_forget_the_order_and_tuples_keep_it(parts: list[str], random: object) -> None:
    """Against Python's own sets and tuples of exact values."""
    other = list(parts)
    random.shuffle(other)  # type: ignore[attr-defined]

    def never(gold: str, prediction: str) -> tuple[Decided, str]:
        raise AssertionError(f"algebra was asked about {gold} and {prediction}")

    def value(text: str) -> float:
        above, _, below = text.removeprefix("\\frac{").removesuffix("}").partition("}{")
        return int(above) / int(below or 1)

    braces = compare(
        gold=f"\\{{{','.join(parts)}\\}}", answer=f"\\{{{', '.join(other)}\\}}", lists="set", algebra=never
    )
    assert braces[0] == "right"
    same_order = [value(part) for part in parts] == [value(part) for part in other]
    if len(parts) > 1 and not any("frac{-" in part for part in parts):
        tuples = compare(gold=f"({','.join(parts)})", answer=f"({', '.join(other)})", lists="set", algebra=never)
        assert (tuples[0] == "right") == same_order


def test_algebra_is_asked_a_bounded_number_of_times() -> None:
    asked = []

    def undecided(gold: str, prediction: str) -> tuple[Decided, str]:
        asked.append((gold, prediction))
        return "undecided", "never"

    many = ",".join(f"\\sqrt{{{n}}}" for n in range(2, 22))
    other = ",".join(f"\\ln {n}" for n in range(2, 22))
    decision, _ = compare(gold=many, answer=other, lists="set", algebra=undecided)
    assert decision == "undecided"
    assert len(asked) <= 16


@pytest.mark.parametrize(
    "text", ["", "{", "}", "\\", "\\\\", "$", "\\begin{pmatrix}", "(" * 20, "\\{", ",", "\\pm", "=", "\0"]
)
def test_broken_latex_is_no_error(text: str) -> None:
    structure_of(readable(text))
    assert one_spelling(text) == one_spelling(f" {text}")
    assert graded(text, "x+1") in ("wrong", "undecided")


@settings(max_examples=100, deadline=None)
@given(st.text("0123456789.,;+-*/^_=<>()[]{}\\$ abxπ∞≤\nfracsqrtpmcupor&", max_size=60))
def test_any_text_is_read_twice_alike_and_equals_itself(text: str) -> None:
    assert readable(readable(text)) == readable(text) or "\\" in text
    structure_of(readable(text))
    if text.strip():
        assert (
            compare(gold=text, answer=text, lists="unknown", algebra=lambda gold, prediction: ("wrong", ""))[0]
            == "right"
        )


@pytest.mark.parametrize(
    "unit, found",
    [
        (" cm", ("length", 10)),
        ("centimetres", ("length", 10)),
        (" square feet", ("length^2", 3048**2 / 100)),
        (" cm ^ {2}", ("length^2", 100)),
        ("hours", ("time", 3600)),
        ("apples", None),
        ("", None),
        ("m/s", None),
    ],
)
def test_units_of_measure(unit: str, found: tuple[str, float] | None) -> None:
    result = quantity(unit)
    assert (None if result is None else (result[0], float(result[1]))) == found


def test_equations_are_not_compared_by_solving_them() -> None:
    # math-verify's own verdict on these two is "equal"; when that changes, `_same_equation` has had its day.
    assert equal_by_algebra("x^{2}+50=0", "x^{2}+50=1")[0] == "wrong"
    assert equal_by_algebra("x^{2}+50=0", "2x^{2}+100=0")[0] == "right"
