"""Verifiers: what counts as the final answer, when it is right, and when nobody can tell."""

from __future__ import annotations

import json
import pickle
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import hydra.utils
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cft.types import Decision, Verdict
from cft.verifiers import Exact, Math, MultipleChoice, Numeric, Regex, verifier_fingerprint
from cft.verifiers.algebra import too_hard
from cft.verifiers.extract import boxed_answer, explicit_answer, last_formulas
from cft.verifiers.numbers import MAX_DIGITS, as_fraction, canonical, last_number, read_number

CONF = Path(__file__).parent.parent.parent / "conf" / "verifier"
NUMERIC = Numeric(fallback_last_number=True)
MARKED = Numeric(fallback_last_number=False)
EXACT = Exact(case_sensitive=False, fallback_last_line=True)
CHOICE = MultipleChoice(choices="ABCDE")
MATH = Math(fallback_last_number=True, lists="unknown")
ALL = [NUMERIC, MARKED, EXACT, CHOICE, MATH, Regex(pattern=r"=\s*(\S+)", compare="number")]
# st.text() leaves out lone surrogates; model text may hold them.
ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.text(
    "0123456789.,/-+$%eE \n#\\{}[]()boxed=answer is:", max_size=80
)


def test_numeric_without_fallback_wants_a_marker_or_the_phrase() -> None:
    assert MARKED("2 + 2 = 4", "4").decision is Decision.WRONG
    assert MARKED("#### 4", "4").decision is Decision.RIGHT
    assert MARKED("the answer is 4", "4").decision is Decision.RIGHT


@pytest.mark.parametrize(
    "response, explicit",
    [
        ("\\boxed{12}", True),
        ("#### 12\n", True),
        ("<answer>12</answer>", True),
        ("#### 1", False),  # cut off here, it may have been on its way to 12
        ("\\boxed{1", False),
        ("<answer>1", False),
        ("the answer is 12.\n", False),
        ("12", False),
        ("\\boxed{12}\n#### 1", False),
    ],
)
def test_explicit_means_that_later_text_cannot_make_it_another_number(response: str, explicit: bool) -> None:
    assert NUMERIC(response, "12").explicit is explicit


@settings(deadline=None)
@given(
    st.fractions(max_denominator=10**6),
    st.sampled_from(["\\boxed{%s}", "#### %s", "#### %s\n", "the answer is %s.", "so %s"]),
)
def test_numeric_accepts_a_fraction_and_refuses_its_neighbour(value: Fraction, form: str) -> None:
    assert NUMERIC(form % value, str(value)).decision is Decision.RIGHT
    assert NUMERIC(form % value, str(value + Fraction(1, 10**9))).decision is Decision.WRONG


@settings(deadline=None)
@given(
    st.decimals(min_value=-(10**12), max_value=10**12, places=4),
    st.sampled_from(["{:,}", "{}", "${:,}", "{:,} dollars"]),
)
def test_decimal_numbers_are_read_exactly_with_separators(value: Any, form: str) -> None:
    text = form.format(value)
    assert read_number(text, whole=True).value == Fraction(value)


@settings(max_examples=100, deadline=None)
@given(ANY_TEXT, ANY_TEXT)
def test_no_text_is_an_error_and_every_verdict_can_be_stored(response: str, answer: str) -> None:
    for verifier in ALL:
        if verifier is MATH:
            continue  # through the pool: tests/verifiers/test_pool.py
        verdict = verifier(response, answer)
        assert isinstance(verdict, Verdict)
        assert verdict.reason
        assert "\0" not in verdict.extracted
        verdict.extracted.encode("utf-8")
        assert verifier(response, answer) == verdict
        assert verifier.final(response) is False


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{",
        "#",
        "1",
        "1,",
        "answer is ",
        "<answer>",
        "{",
        "}",
        "1 1/",
        "-",
        "####\n",
        "\\",
        "answer ",
        "1e",
        "\\boxed{1}",
        "$",
        "$x$, ",
        "A or ",
        "\\framebox[1]{",
    ],
)
@pytest.mark.timing
def test_a_long_text_of_anything_takes_linear_time(text: str) -> None:
    long = text * (80_000 // len(text))  # in quadratic time that would be minutes
    started = time.process_time()
    for verifier in (NUMERIC, EXACT, CHOICE):
        verifier(long, "5")
    last_formulas(long)
    boxed_answer(long)
    assert time.process_time() - started < 2


def test_long_runs_of_digits_are_compared_as_text_alone() -> None:
    digits = "7" * 5000
    assert as_fraction(digits) is None
    assert as_fraction("7" * MAX_DIGITS) == Fraction("7" * MAX_DIGITS)
    assert NUMERIC(f"\\boxed{{{digits}}}", digits).decision is Decision.RIGHT
    assert NUMERIC(f"\\boxed{{{digits}}}", "7").decision is Decision.UNDECIDED
    assert NUMERIC(f"so {digits}", "7").decision is Decision.UNDECIDED


@pytest.mark.parametrize(
    "text, number",
    [
        ("a 3 b 4", "4"),
        ("1,2,3", "3"),
        ("1,234", "1,234"),
        ("12,34", "34"),
        ("5.", "5"),
        (".5", ".5"),
        ("3/4", "3/4"),
        ("x", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_canonical_is_shared_by_equal_answers_only() -> None:
    assert canonical("1,000") == canonical("1000.0") == canonical("\\frac{2000}{2}") == canonical("$1000")
    assert canonical("Paris. ") == canonical("paris")
    assert canonical("1000") != canonical("1001")
    assert canonical("2^3") != canonical("2^4")


def test_exact_can_mind_case_and_want_a_marker() -> None:
    strict = Exact(case_sensitive=True, fallback_last_line=False)
    assert strict("\\boxed{paris}", "Paris").decision is Decision.WRONG
    assert strict("Paris", "Paris").decision is Decision.WRONG
    assert strict("\\boxed{Paris}", "Paris").decision is Decision.RIGHT


def test_regex_takes_the_last_match_and_the_first_group_that_matched() -> None:
    verifier = Regex(pattern=r"Result: (\w+)|Outcome: (\w+)", compare="text")
    assert verifier("Result: one. Outcome: Two.", "two").decision is Decision.RIGHT
    assert verifier("Result: one. Outcome: Two.", "one").decision is Decision.WRONG
    assert verifier("nothing", "one").decision is Decision.WRONG
    assert verifier("Result: one. ", "one").explicit
    assert not verifier("Result: one", "one").explicit
    number = Regex(pattern=r"= (\S+)", compare="number")
    assert number("a = 0.50", "1/2").decision is Decision.RIGHT
    assert number("a = x^2", "4").decision is Decision.UNDECIDED
    with pytest.raises(ValueError, match=r"verifier\.pattern"):
        Regex(pattern="(", compare="text")


def test_math_does_not_mix_up_gold_and_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    # math-verify's verify(gold, target) is not symmetric, and takes the prediction second.
    seen: dict[str, Any] = {}
    monkeypatch.setattr("math_verify.verify", lambda **given: seen.update(given) or True)
    assert MATH("\\boxed{x+y>8}", "x+y>7").decision is Decision.UNDECIDED  # nothing of ours confirms this "yes"
    assert ("7" in str(seen["gold"]), "8" in str(seen["target"])) == (True, True)


@pytest.mark.parametrize(
    "expression, refused",
    [
        ("10^{10^{10}}", True),
        ("2^3^4", True),
        ("2^{3}^{4}", True),
        ("((9^9)^9)^9", True),
        ("(x+1)^{1000}", True),
        ("\\sum_{n=1}^{9999} \\frac{1}{n^n}", True),
        ("9^{1e9}", True),
        ("2^{30^6}+1", True),
        ("2^{100000}", True),
        ("100000000!", True),
        ("(3!)!", True),
        ("\\binom{10^9}{5}", True),
        ("(" * 33 + "1" + ")" * 33, True),
        ("1" * 513, True),
        ("\ud800", True),
        ("x^{2}+y^{2}", False),
        ("x^2y^2", False),
        ("(x+1)^2(x+2)^3(x+3)^4", False),
        ("\\frac{x^2}{4}+\\frac{y^2}{9}=1", False),
        ("\\binom{10}{5}", False),
        ("10!", False),
        ("\\frac{\\sqrt{3}}{2}", False),
        ("e^{-x}", False),
    ],
)
def test_what_computer_algebra_may_see(expression: str, refused: bool) -> None:
    assert bool(too_hard(expression)) is refused


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_builds_a_verifier_that_travels(path: Path) -> None:
    verifier = hydra.utils.instantiate(OmegaConf.load(path))
    copy = pickle.loads(pickle.dumps(verifier))
    assert copy == verifier
    assert verifier_fingerprint(copy) == verifier_fingerprint(verifier)
    assert verifier("", "5").decision in (Decision.WRONG, Decision.UNDECIDED)


def test_a_fingerprint_distinguishes_name_version_and_arguments_apart() -> None:
    prints = {verifier_fingerprint(verifier) for verifier in ALL}
    assert len(prints) == len(ALL)
    content = json.loads(verifier_fingerprint(NUMERIC))
    assert content == {"name": "numeric", "version": "4", "args": {"fallback_last_number": True}}
    assert "math-verify" in json.loads(verifier_fingerprint(MATH))["version"]
    with pytest.raises(TypeError, match="dataclass"):
        verifier_fingerprint(object())  # pyright: ignore[reportArgumentType]


def test_explicit_answer_reports_what_it_found() -> None:
    found = explicit_answer("so \\fbox{ 3 } it is")
    assert found is not None
    assert (found.text, found.kind, found.closed) == ("3", "boxed", True)
